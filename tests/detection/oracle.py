"""What counts as found by leakcheck: a leak of the plant's kind that carries the facts which READY told."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from plants import Plant

from leakcheck import Arena, _native

Facts = dict[str, Any]
Resource = dict[str, Any]

# These kinds have no namespace: others at work on the machine are seen too.
MACHINE_WIDE = {"cgroup", "loop", "key", "bpf", "sysctl"}


def look(roots: list[str], lock_files: list[str]) -> _native.Snapshot:
    return _native.snapshot(scope="host", roots=roots, lock_files=lock_files)


def look_at_arena(arena: Arena, lock_files: list[str]) -> _native.Snapshot:
    return _native.snapshot(scope="arena", arena=arena.view, lock_files=lock_files)


def diff(before: _native.Snapshot, after: _native.Snapshot) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(_native.diff(before, after))
    return report


def settle(before: _native.Snapshot) -> dict[str, Any]:
    """Wait until nothing is left or what is left stays: the kernel frees namespaces and devices a moment later."""
    report: dict[str, Any] = json.loads(_native.settle(before, settle_ms=500))
    return report


def look_again(plant: Plant, before: _native.Snapshot, after: _native.Snapshot) -> dict[str, Any]:
    """Compare two looks; what never holds still is what settling sees, since one look need not meet it."""
    if plant.name not in RESPAWNING:
        return diff(before, after)
    report: dict[str, Any] = json.loads(_native.settle(before, settle_ms=100))
    return report


def is_found(plant: Plant, facts: Facts, report: dict[str, Any]) -> bool:
    """Whether every resource that the plant consists of is among the leaks."""
    leaks = [leak["evidence"]["resource"] for leak in report["leaks"]]
    return all(any(matches(resource) for resource in leaks) for matches in parts(plant, facts))


def is_clean(plant: Plant, facts: Facts, report: dict[str, Any]) -> bool:
    """Whether nothing is left; of the machine-wide kinds, nothing of this plant."""
    expected = list(parts(plant, facts))
    for leak in report["leaks"]:
        resource = leak["evidence"]["resource"]
        if leak["kind"] not in MACHINE_WIDE or any(matches(resource) for matches in expected):
            return False
    return True


Match = Callable[[Resource], bool]


def parts(plant: Plant, facts: Facts) -> Iterator[Match]:
    """Yield one predicate for each resource that the report has to show."""
    special = SPECIAL.get(plant.name)
    yield from (special or BY_KIND[plant.kind])(plant.name, facts)


def with_fields(kind: str, **expected: Any) -> Match:
    return lambda r: r["kind"] == kind and all(plain(r.get(field)) == value for field, value in expected.items())


def plain(value: Any) -> Any:
    """Undo leakcheck's escapes, so that a hostile name is compared as the bytes that it is."""
    if not isinstance(value, str):
        return value
    words = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"\\": b"\\"}
    unescape = lambda m: words.get(m[1]) or bytes([int(m[1][1:], 16)])  # noqa: E731
    return re.sub(rb"\\(x[0-9a-f]{2}|.)", unescape, value.encode()).decode(errors="surrogateescape")


def path(facts: Facts, field: str = "path") -> str:
    return os.fsdecode(bytes.fromhex(facts["path_hex"])) if "path_hex" in facts else facts[field]


def device(facts: Facts) -> int:
    major, minor = map(int, facts["dev"].split(":"))
    return major << 32 | minor


def process(name: str, facts: Facts) -> Iterator[Match]:
    state = {"zombie": "Z", "stopped": "T"}.get(name)
    yield with_fields("process", pid=facts["pid"], **({"state": state} if state else {}))


def respawning(_: str, facts: Facts) -> Iterator[Match]:
    # Whichever process of it was there: no look shares one with another.
    yield with_fields("process", comm=facts["comm"])


def fd(_: str, facts: Facts) -> Iterator[Match]:
    same_file = {"dev": device(facts), "ino": facts["ino"]} if facts["link"].startswith("/") else {}
    yield with_fields("fd", pid=facts["pid"], fd=facts["fd"], target=facts["link"], **same_file)


def fd_of_a_thread(_: str, facts: Facts) -> Iterator[Match]:
    owner = {"pid": facts["pid"], "table": facts["tid"], "fd": facts["fd"]}
    yield with_fields("fd", **owner, dev=device(facts), ino=facts["ino"])


def fd_in_flight(_: str, facts: Facts) -> Iterator[Match]:
    target = f"socket:[{facts['socket_ino']}]"
    yield with_fields("fd", pid=facts["pid"], fd=facts["socket_fd"], target=target, in_flight=1)


def mapping(_: str, facts: Facts) -> Iterator[Match]:
    # A deleted file that is mapped is of the kind file: no descriptor is left.
    same = with_fields("file", dev=device(facts), ino=facts["ino"])
    yield lambda r: same(r) and r["mapped_by"][0] == facts["pid"]


def mount(_: str, facts: Facts) -> Iterator[Match]:
    yield with_fields("mount", target=facts["path"], dev=device(facts))


def mount_in_other_namespace(name: str, facts: Facts) -> Iterator[Match]:
    yield with_fields("mount", target=facts["target"], ns=facts["ino"], fs_type="tmpfs")
    yield with_fields("namespace", ns_type="mnt", ino=facts["ino"])
    if name == "mount-ns-bind":
        yield with_fields("mount", target=facts["path"], fs_type="nsfs")


def mount_of_cwd(_: str, facts: Facts) -> Iterator[Match]:
    yield with_fields("mount", ns=0, dev=device(facts), holder=f"cwd of {facts['pid']}")


def mount_of_fd(_: str, facts: Facts) -> Iterator[Match]:
    yield with_fields("mount", ns=0, dev=device(facts), holder=f"fd {facts['fd']} of {facts['pid']}")


def cgroup(name: str, facts: Facts) -> Iterator[Match]:
    yield with_fields("cgroup", dir=facts["path"], ino=facts["ino"], hierarchy=facts["hierarchy"])
    if name == "cgroup-nested":
        yield with_fields("cgroup", dir=str(Path(facts["leaf"]).parent))
        yield with_fields("cgroup", dir=facts["leaf"])
    if name in ("cgroup-populated", "cgroup-frozen"):
        yield with_fields("process", pid=facts["pid"])


def lock(name: str, facts: Facts) -> Iterator[Match]:
    range_ = {"start": 0, "end": 9} if name == "lock-ofd" else {}
    yield with_fields("lock", **{"class": facts["class"].lower()}, dev=device(facts), ino=facts["ino"], **range_)


def lock_file(name: str, facts: Facts) -> Iterator[Match]:
    state = name.removeprefix("lockfile-").removesuffix("-json")
    yield with_fields("lockfile", path=facts["path"], ino=facts["ino"], state=state)


FILE_CLASSES = {"dir": "dir", "fifo": "fifo", "socket": "socket", "device": "char", "symlink": "symlink"}


def file(name: str, facts: Facts) -> Iterator[Match]:
    class_ = FILE_CLASSES.get(name.removeprefix("file-"), "file")
    yield with_fields("file", path=path(facts), dev=device(facts), ino=facts["ino"], **{"class": class_})


def ipc(name: str, facts: Facts) -> Iterator[Match]:
    if "class" in facts:
        yield with_fields("ipc", id=facts["id"], **{"class": facts["class"]})
    elif name == "mqueue":
        yield with_fields("ipc", name=f"/dev/mqueue{facts['name']}", **{"class": "mqueue"})
    else:
        yield with_fields("ipc", name=facts["path"], id=facts["ino"], **{"class": "posix-shm"})


def namespace(_: str, facts: Facts) -> Iterator[Match]:
    yield with_fields("namespace", ns_type=facts["ns"], ino=facts["ino"])


def interface(_: str, facts: Facts) -> Iterator[Match]:
    yield with_fields("net", **{"class": "interface"}, name=facts["name"], number=facts["ifindex"])
    if "peer" in facts:
        yield with_fields("net", **{"class": "interface"}, name=facts["peer"])


def named_netns(_: str, facts: Facts) -> Iterator[Match]:
    yield with_fields("net", **{"class": "named-netns"}, scope=facts["path"], number=facts["ino"])


def named_object(name: str, facts: Facts) -> Iterator[Match]:
    class_ = name.removeprefix("net-")
    yield lambda r: r["kind"] == "net" and r["class"] == class_ and facts["name"] in r["name"]


def socket(name: str, facts: Facts) -> Iterator[Match]:
    class_ = {"net-tcp-listen": "listener", "net-abstract-unix": "unix"}[name]
    yield with_fields("net", **{"class": class_}, number=facts["ino"])


def loop(_: str, facts: Facts) -> Iterator[Match]:
    device = Path(facts["device"]).name
    yield lambda r: r["kind"] == "loop" and r["device"] == device and plain(r["backing"]).startswith(facts["path"])


def key(_: str, facts: Facts) -> Iterator[Match]:
    yield with_fields("key", serial=facts["serial"], key_type=facts["type"], description=facts["name"])


def bpf(_: str, facts: Facts) -> Iterator[Match]:
    class_ = "prog" if "prog_id" in facts else "map"
    yield with_fields("bpf", **{"class": class_}, id=facts[f"{class_}_id"])


def sysctl(_: str, facts: Facts) -> Iterator[Match]:
    yield with_fields("sysctl", path=facts["path"], value=facts["after"], before=facts["before"])


BY_KIND = {
    "process": process,
    "fd": fd,
    "mount": mount,
    "cgroup": cgroup,
    "lock": lock,
    "lockfile": lock_file,
    "file": file,
    "ipc": ipc,
    "namespace": namespace,
    "net": interface,
    "loop": loop,
    "key": key,
    "bpf": bpf,
    "sysctl": sysctl,
}

RESPAWNING = ("respawning-slow", "respawning", "respawning-fast")

SPECIAL = {
    **dict.fromkeys(RESPAWNING, respawning),
    "fd-thread-table": fd_of_a_thread,
    "fd-in-flight": fd_in_flight,
    "mmap-deleted": mapping,
    "mount-lazy-cwd": mount_of_cwd,
    "mount-ns-fd": mount_in_other_namespace,
    "mount-ns-bind": mount_in_other_namespace,
    "mount-detached": mount_of_fd,
    "mount-detached-clone": mount_of_fd,
    "net-named-netns": named_netns,
    "net-address": named_object,
    "net-route": named_object,
    "net-rule": named_object,
    "net-neighbour": named_object,
    "net-filter": named_object,
    "net-ipsec-policy": named_object,
    "net-ipset": named_object,
    "net-ipset-element": named_object,
    "net-forwarding": named_object,
    "net-iptables-rule": named_object,
    "net-nft-table": named_object,
    "net-nft-chain": named_object,
    "net-nft-rule": named_object,
    "net-tcp-listen": socket,
    "net-abstract-unix": socket,
}
