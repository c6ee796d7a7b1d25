#!/usr/bin/env python3
# thread_cwd.py DIRECTORY SECONDS: mounts a tmpfs there that is unmounted lazily; only the working directory of a thread, which is
# not its process' first, keeps it. The process outlives this command by so many seconds.
import ctypes, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
place = sys.argv[1]
def call(name, *args):
    if getattr(libc, name)(*args) < 0: sys.exit(f"{name}: {os.strerror(ctypes.get_errno())}")
call("mount", b"lazy", place.encode(), b"tmpfs", 0, None)
begun, ready = os.pipe()
if os.fork():
    os.close(ready)
    sys.exit(os.read(begun, 1) != b".")
os.setsid()
null = os.open("/dev/null", os.O_RDWR)
for fd in range(3): os.dup2(null, fd)
inside, over = threading.Event(), threading.Event()
def stay():
    call("unshare", 0x200)  # CLONE_FS
    os.chdir(place)
    inside.set()
    over.wait(float(sys.argv[2]))
threading.Thread(target=stay).start()
inside.wait()
call("umount2", place.encode(), 2)  # MNT_DETACH
os.write(ready, b".")
os.close(ready)
