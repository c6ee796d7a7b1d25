#!/usr/bin/env python3
"""Boots Debian's cloud kernel (6.1: cgroup v2 alone, no statmount, no unique mount ids) with ``vm_check`` as its task.

Needs qemu-system-x86_64 and a static busybox; the kernel package is fetched with apt-get and unpacked, not installed.
Everything is kept in a cache directory. The machine has neither disk nor network, and ends itself or by the timeout.
"""

import argparse
import gzip
import importlib.metadata
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODULES = (
    "veth", "tun", "dummy", "nf_tables", "loop", "overlay",
    "unix_diag", "inet_diag", "tcp_diag", "udp_diag", "raw_diag", "netlink_diag", "af_packet_diag",
)  # fmt: skip
# The distribution of leakcheck, which says what it needs.
DISTRIBUTION = "sandbox-leakcheck"
QEMU = (
    "qemu-system-x86_64",
    "-accel",
    "tcg",
    "-m",
    "1024",
    "-display",
    "none",
    "-monitor",
    "none",
    "-nic",
    "none",
    "-no-reboot",
)


class UnavailableError(Exception):
    """What it takes is not to be had here; the message says what."""


def kernel(cache: Path) -> tuple[Path, Path]:
    """Return kernel image and module tree of Debian's current cloud kernel, fetched once."""
    if shutil.which("apt-get") is None:
        raise UnavailableError("no apt-get to fetch Debian's kernel with")
    depends = output("apt-cache", "depends", "linux-image-cloud-amd64")
    named = re.search(r"Depends: (linux-image-\S+)", depends)
    if named is None:
        raise UnavailableError("linux-image-cloud-amd64 is not known to apt: run apt-get update")
    tree = cache / named[1]
    if not tree.exists():
        fetched = cache / "fetched"
        shutil.rmtree(fetched, ignore_errors=True)
        fetched.mkdir(parents=True)
        subprocess.run(["apt-get", "-q", "download", named[1]], cwd=fetched, check=True, stdout=sys.stderr)
        (package,) = fetched.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", package, fetched / "tree"], check=True)
        (fetched / "tree").rename(tree)
        shutil.rmtree(fetched)
    (image,) = (tree / "boot").glob("vmlinuz-*")
    (modules,) = (tree / "lib/modules").iterdir()
    return image, modules


def output(*command: str | Path) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def module_files(tree: Path, wanted: Iterable[str]) -> list[Path]:
    """Return those modules that the kernel package has, each after what it depends on (modinfo(8), ``depends``)."""
    files = {path.name.removesuffix(".ko").replace("-", "_"): path for path in tree.rglob("*.ko")}
    ordered: list[Path] = []

    def add(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is None or path in ordered:
            return
        listed = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
        for needed in listed[1].decode().split(",") if listed else ():
            add(needed)
        ordered.append(path)

    for name in wanted:
        add(name)
    return ordered


def libraries(program: Path) -> list[Path]:
    """Return the shared objects that a program is loaded with, its loader too (ldd(1))."""
    listing = subprocess.run(
        ["ldd", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False
    )
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", listing.stdout)]


def cpio(entries: Iterable[tuple[str, int, bytes]]) -> Iterator[bytes]:
    """Write an archive as the kernel unpacks it (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    for inode, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        encoded = name.encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
        yield header + b"\0" * (-len(header) % 4) + data + b"\0" * (-len(data) % 4)


def needed(name: str) -> set[str]:
    """Return the names of a distribution and of all that it needs, without extras."""
    found, rest = set[str](), [name]
    while rest:
        if (one := rest.pop()) not in found:
            found.add(one)
            wants = importlib.metadata.requires(one) or ()
            rest += [re.split(r"[^\w.-]", want)[0] for want in wants if "extra ==" not in want and ";" not in want]
    return found


def python_files(cache: Path) -> dict[str, Path]:
    """Return a Python with leakcheck and what it imports, compiled, by their places in the machine."""
    root = cache / "python"
    shutil.rmtree(root, ignore_errors=True)
    standard = Path(os.__file__).parent
    left_out = shutil.ignore_patterns(
        "__pycache__", "test", "tests", "idlelib", "lib2to3", "ensurepip", "tkinter", "*-packages", "config-*", "*.a"
    )
    shutil.copytree(standard, root / f"usr/lib/{standard.name}", ignore=left_out)
    packages = root / "usr/lib/python3/dist-packages"
    for name in ("leakcheck", "injectors"):
        shutil.copytree(ROOT / name, packages / name, ignore=left_out)
    for name in needed(DISTRIBUTION) - {DISTRIBUTION}:
        for file in importlib.metadata.files(name) or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                (packages / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file.locate(), packages / file)
    # Their times are not kept, so they cannot be compared.
    compile_all = ("-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", root)
    subprocess.run([sys.executable, *compile_all], check=True, stdout=sys.stderr)
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    return {"usr/bin/python3": Path(sys.executable).resolve(), **files}


def initramfs(programs: dict[str, Path], modules: list[Path]) -> bytes:
    """Build the file system that the machine runs from."""
    files = {"init": HERE / "init", "bin/busybox": Path(shutil.which("busybox") or ""), **programs}
    loaded = [path for path in list(files.values())[1:] if path.suffix == ".so" or os.access(path, os.X_OK)]
    for program in loaded:
        files.update({str(path).lstrip("/"): path for path in libraries(program)})
    files.update({f"modules/{path.name}": path for path in modules})
    contents = {name: path.read_bytes() for name, path in files.items()}
    contents["modules/order"] = "".join(f"/modules/{path.name}\n" for path in modules).encode()
    parents = {str(parent) for name in contents for parent in Path(name).parents} - {"."}
    directories = [(name, stat.S_IFDIR | 0o755, b"") for name in sorted(parents | {"proc", "sys", "dev"})]
    regular = [(name, stat.S_IFREG | 0o755, data) for name, data in contents.items()]
    return gzip.compress(b"".join(cpio(directories + regular)), compresslevel=1)


def boot(image: Path, initrd: Path, serial: Path, timeout: float) -> str:
    """Run the machine until it powers off, and return what it said on its serial line."""
    append = "console=ttyS0 quiet panic=-1 psi=1"
    command = [*QEMU, "-kernel", image, "-initrd", initrd, "-append", append, "-serial", f"file:{serial}"]
    serial.write_bytes(b"")
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True, timeout=timeout)
    return serial.read_text(errors="replace").replace("\r", "")


def build_check() -> Path:
    """Build the program that checks, and return its path."""
    subprocess.run(
        ["cargo", "build", "--locked", "--package", "leakcheck", "--example", "vm_check"], cwd=ROOT, check=True
    )
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/examples/vm_check"


def run(helpers: dict[str, Path], cache: Path, timeout: float, *, exhaust: bool = False) -> str:
    """Build what is needed, boot, and return what was said. `helpers`: mkleak and the warden.

    With `exhaust`, the machine runs that campaign on refbox instead of the checks.

    Raises:
        UnavailableError: something is missing here.
        subprocess.TimeoutExpired: the machine did not end in time; what it said is in ``serial.txt`` of the cache.
    """
    for tool in (QEMU[0], "busybox", "cargo"):
        if shutil.which(tool) is None:
            raise UnavailableError(f"{tool} is missing: run `make test-full` as root, which installs it")
    cache.mkdir(parents=True, exist_ok=True)
    image, tree = kernel(cache)
    initrd = cache / "initramfs.gz"
    programs = {**helpers, **python_files(cache)} if exhaust else {"vm_check": build_check(), **helpers}
    initrd.write_bytes(initramfs(programs, module_files(tree, MODULES)))
    return boot(image, initrd, cache / "serial.txt", timeout)


def main() -> int:
    """Print what the machine says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cache", type=Path, default=ROOT / "target/vm", help="where the kernel and the image are kept"
    )
    parser.add_argument("--timeout", type=float, default=600, help="seconds")
    parser.add_argument("--exhaust", action="store_true", help="run leakcheck exhaust on refbox, not the checks")
    parser.add_argument("mkleak", type=Path, help="the mkleak program")
    parser.add_argument("warden", type=Path, help="the warden program")
    args = parser.parse_args()
    try:
        helpers = {"mkleak": args.mkleak, "warden": args.warden}
        print(run(helpers, args.cache, args.timeout, exhaust=args.exhaust))
    except UnavailableError as missing:
        print(f"run.py: {missing}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
