#!/usr/bin/env python3
# BPF maps of $ENTRIES that no descriptor shows to be their maker's.
#   neighbour SOCKET  says READY, and for each connection does as told: "pin" makes a map that only a BPF file system of its own
#                     holds, "take" keeps the descriptor that comes with it, "make" makes and keeps a map, "both" does the last
#                     two, "instead" makes and closes a map before it keeps the other, "back" closes the other before it makes and
#                     keeps one; answers "done"
#   ask SOCKET WORD   tells it, all but "pin" and "make" with a map of one's own; "too pin" makes and closes one before
#   pin DIRECTORY     makes a map, pins it there and ends
import ctypes, os, socket, struct, sys, time
# Calls of two processes that are nearer to each other are not told apart.
APART = 0.2
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    got = getattr(libc, name)(*args)
    if got < 0: sys.exit(f"{name}: {os.strerror(ctypes.get_errno())}")
    return got
def bpf(command, attr):
    return call("syscall", 321, command, ctypes.create_string_buffer(attr.ljust(128, b"\0"), 128), 128)
def made():
    return bpf(0, struct.pack("IIIII", 1, 8, 8, int(os.environ["ENTRIES"]), 0))
def pin(directory):
    path = ctypes.create_string_buffer(os.fsencode(f"{directory}/map"))
    call("mount", b"bpf", os.fsencode(directory), b"bpf", 0, None)
    bpf(6, struct.pack("QI", ctypes.addressof(path), made()))
what, place = sys.argv[1:3]
if what == "pin":
    pin(place)
elif what == "ask":
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(place)
        word = sys.argv[-1]
        if "too" in sys.argv:
            os.close(made())
            time.sleep(APART)
        socket.send_fds(sock, [word.encode()], [] if word in ("pin", "make") else [made()])
        sys.exit(sock.recv(9) != b"done")
else:
    call("unshare", 0x20000)
    call("mount", None, b"/", None, 0x44000, None)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place)
        server.listen()
        print("READY", flush=True)
        kept = []
        while True:
            sock, _ = server.accept()
            word, fds, _, _ = socket.recv_fds(sock, 9, 1)
            kept += fds
            if word in (b"make", b"both"): kept.append(made())
            if word in (b"instead", b"back"): time.sleep(APART)
            if word == b"instead": os.close(made())
            if word == b"back":
                os.close(kept.pop())
                kept.append(made())
            if word == b"pin":
                if os.fork() == 0:
                    pin(os.path.dirname(place))
                    os._exit(0)
                os.wait()
            sock.send(b"done")
            sock.close()
