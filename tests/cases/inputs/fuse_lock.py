#!/usr/bin/env python3
# A process whose memory map stays locked: a page fault waits for a FUSE server with the lock, and another thread wants to map
# memory. Everybody who reads its arguments waits then.  argv: FILE (made, and mounted on)
import ctypes, os, struct, sys, threading, time
path = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
open(path, "w").close()
fuse = os.open("/dev/fuse", os.O_RDWR)
told, tell = os.pipe()
if libc.mount(b"fuse", path.encode(), b"fuse", 0, f"fd={fuse},rootmode=100644,user_id=0,group_id=0".encode()):
    sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
if os.fork():
    os.close(fuse)
    if os.fork():
        os.close(tell)
        os.read(told, 1)  # the second request for the page has come
        time.sleep(0.5)  # and the other thread waits for the lock
        sys.exit()
    os.setsid()
    for n in (0, 1, 2): os.dup2(os.open("/dev/null", os.O_RDWR), n)
    file = os.open(path, os.O_RDONLY)
    os.fstat(file)  # its size
    page = libc.mmap(None, 4096, 1, 2, file, 0)
    threading.Thread(target=libc.memcmp, args=(page, page + 64, 8), daemon=True).start()
    os.close(tell)
    os.read(told, 1)
    while True:
        libc.mmap(None, 4096, 3, 0x22, -1, 0)
        time.sleep(0.01)
os.setsid()
for n in (0, 1, 2): os.dup2(os.open("/dev/null", os.O_RDWR), n)
ATTR = struct.pack("<QQQQQQIIIIIIIIII", 1, 4096, 8, 0, 0, 0, 0, 0, 0, 0o100644, 1, 0, 0, 0, 4096, 0)
reads = 0
while True:
    _, operation, unique, _ = struct.unpack_from("<IIQQ", os.read(fuse, 1 << 17))
    error, body = 0, b""
    if operation == 26: body = struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 0, 0, 4096, 1, 1, 0, 0)  # INIT
    elif operation == 14: body = struct.pack("<QII", 1, 0, 0)  # OPEN
    elif operation == 3: body = struct.pack("<QII", 0, 0, 0) + ATTR  # GETATTR
    elif operation == 15:  # READ: once an error; the second attempt keeps the lock (filemap_fault())
        reads += 1
        if reads > 1:
            os.write(tell, b"xx")
            continue
        error = -5
    os.write(fuse, struct.pack("<IiQ", 16 + len(body), error, unique) + body)
