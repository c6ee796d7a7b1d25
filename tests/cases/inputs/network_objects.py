#!/usr/bin/env python3
# Adds what filters, forwards and labels packets, in a network namespace of one's own.
#   make   interfaces and empty sets
#   add    an element, entry, label or rule to each
#   many N adds N elements to the set of ipset
import ctypes, os, socket, struct, subprocess, sys

NETFILTER, CREATE, APPEND, ACK = 12, 0x400, 0x800, 5
libc = ctypes.CDLL(None, use_errno=True)
sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER)
def attribute(kind, *parts):
    payload = b"".join(p.encode() + b"\0" if isinstance(p, str) else p for p in parts)
    return struct.pack("HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)
def message(kind, flags, family, *attributes, resource=0):
    payload = struct.pack(">BBH", family, 0, resource) + b"".join(attributes)
    return struct.pack("IHHII", 16 + len(payload), kind, flags | 1, 0, 0) + payload
def ask(*messages):
    sock.send(b"".join(messages))
    answer = sock.recv(8192)
    number = struct.unpack_from("i", answer, 16)[0]
    if number: sys.exit(f"netlink: {os.strerror(-number) if number > -4096 else number}")
def nft(kind, *attributes):
    ask(message(16, 0, 0, resource=10), message(10 << 8 | kind, CREATE | ACK, 2, *attributes), message(17, 0, 0, resource=10))
def ipset(kind, *attributes, flags=ACK | CREATE):
    ask(message(6 << 8 | kind, flags, 0, attribute(1, b"\6"), attribute(2, "blocked"), *attributes))
def element(number):
    return attribute(7 | 1 << 15, attribute(1 | 1 << 15, attribute(1 | 1 << 14, socket.inet_aton(number))))
def ip(*words):
    subprocess.run(words, check=True)
def arp_rule():
    # As arptables-legacy does: the table is replaced by one with a rule that drops everything before the others.
    inet = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    info = get(inet, 96, b"filter".ljust(68, b"\0"))
    valid, *begins = struct.unpack_from("IIII", info, 32)
    under, (count, size) = list(struct.unpack_from("III", info, 48)), struct.unpack_from("II", info, 60)
    entries = get(inet, 97, struct.pack("32sI4x", b"filter", size) + bytes(size))[40:]
    rule = bytes(164) + struct.pack("HHI4x16x", 192, 232, 0) + struct.pack("H30xi4x", 40, -1)
    later = [begin for begin in begins if begin > begins[0]]
    begins = [begin + (len(rule) if begin in later else 0) for begin in begins]
    under = [under[0] + len(rule), *(u + (len(rule) if u > under[0] else 0) for u in under[1:])]
    counters = ctypes.create_string_buffer(16 * count)
    head = struct.pack("32sIII3I3IIQ", b"filter", valid, count + 1, size + len(rule), *begins, *under, count,
                       ctypes.addressof(counters))
    at = struct.unpack_from("I", info, 36)[0]
    inet.setsockopt(socket.SOL_IP, 96, head + entries[:at] + rule + entries[at:])
def get(inet, option, value):
    buffer, length = ctypes.create_string_buffer(value, len(value)), ctypes.c_uint(len(value))
    if libc.getsockopt(inet.fileno(), 0, option, buffer, ctypes.byref(length)):
        sys.exit(f"getsockopt {option}: {os.strerror(ctypes.get_errno())}")
    return buffer.raw

if sys.argv[1] == "make":
    ip("ip", "link", "add", "br0", "type", "bridge")
    ip("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    ip("ip", "link", "set", "v0", "master", "br0", "up")
    ip("ip", "link", "set", "v1", "up")
    ip("ip", "link", "set", "br0", "up")
    ip("ip", "link", "add", "vx0", "type", "vxlan", "id", "7", "dstport", "4789")
    ipset(2, attribute(3, "hash:ip"), attribute(4, b"\0"), attribute(5, b"\2"), attribute(7 | 1 << 15))
    nft(0, attribute(1, "filter"))
    nft(9, attribute(1, "filter"), attribute(2, "allowed"), attribute(4, struct.pack(">I", 7)),
        attribute(5, struct.pack(">I", 4)), attribute(10, struct.pack(">I", 1)))
    get(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 96, b"filter".ljust(68, b"\0"))
elif sys.argv[1] == "add":
    ip("bridge", "fdb", "add", "02:00:00:00:00:09", "dev", "v0", "master", "static")
    ip("bridge", "fdb", "add", "02:00:00:00:00:0a", "dev", "v1", "self")
    ip("bridge", "fdb", "append", "00:00:00:00:00:00", "dev", "vx0", "dst", "192.0.2.7")
    ip("bridge", "mdb", "add", "dev", "br0", "port", "v0", "grp", "239.1.1.1", "permanent")
    ip("ip", "addrlabel", "add", "prefix", "2001:db8::/32", "label", "99")
    ipset(9, element("192.0.2.1"), attribute(9, struct.pack(">I", 1)))
    nft(12, attribute(1, "filter"), attribute(2, "allowed"), attribute(
        3 | 1 << 15, attribute(1 | 1 << 15, attribute(1 | 1 << 15, attribute(1, socket.inet_aton("192.0.2.2"))))))
    arp_rule()
else:
    for number in range(int(sys.argv[2])):
        ipset(9, element(f"10.0.{number >> 8}.{number & 255}"), attribute(9, struct.pack(">I", 1)))
