"""The stack of a process at a crash point has the names of its functions, in C, Rust and Go."""

import json
import lzma
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE

from injectors.crash import Point, request
from leakcheck._native import build_id, walk_stack
from leakcheck.arena import Arena, Trace
from leakcheck.stack import walk
from leakcheck.trials.explaining import walked
from leakcheck.trials.explanation import Frame

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

INPUTS = Path(__file__).parent / "inputs"
FLAGS = {
    "frame pointers alone": [
        "-fno-omit-frame-pointer",
        "-fno-asynchronous-unwind-tables",
        "-mno-omit-leaf-frame-pointer",
    ],
    "unwind tables alone": ["-fomit-frame-pointer", "-fasynchronous-unwind-tables"],
}


def reported_at(
    argv: list[str], point: Point, binds: list[tuple[Path, str, bool]], *, notified: bool = False
) -> tuple[int, list[dict[str, Any]]]:
    """Kill a command before the call at `point`; return the log and its lines."""
    log = os.memfd_create("log")
    with Arena(binds=binds) as arena:
        asked = request(0, [], point, "before", "supervisor", quiesced=False)
        trace = Trace({**asked, "explain": True, "notified": notified}, log)
        with arena.popen(argv, trace=trace, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            assert process.wait(PATIENCE) == -9
    return log, [json.loads(line) for line in os.pread(log, 1 << 20, 0).partition(b"\0")[0].splitlines()]


def recorded_at(
    argv: list[str], point: Point, binds: list[tuple[Path, str, bool]], *, notified: bool = False
) -> tuple[int, dict[str, Any]]:
    """Kill a command before the call at `point`; return the log and its line about the stack there."""
    log, lines = reported_at(argv, point, binds, notified=notified)
    return log, next(line for line in lines if "stack" in line)


def stack_at(
    argv: list[str], point: Point, binds: list[tuple[Path, str, bool]], *, notified: bool = False
) -> list[Frame]:
    """Kill a command before the call at `point`, and return its stack there."""
    found = walked(*recorded_at(argv, point, binds, notified=notified))
    assert found is not None
    return found


def names_at(program: Path, *, notified: bool = False) -> list[str]:
    point = Point("launch", "0", "mkdir", "/tmp/nested", 1)
    binds = [(program.parent, "/mnt", True)]
    return [one.function for one in stack_at(["/mnt/nested"], point, binds, notified=notified)]


@pytest.mark.parametrize("how", FLAGS)
def test_a_c_program_has_its_functions_with(how: str, tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    flags = ["-O1", "-fno-optimize-sibling-calls", *FLAGS[how]]
    subprocess.run(["cc", *flags, "-o", tmp_path / "nested", INPUTS / "nested.c"], check=True)
    found = names_at(tmp_path / "nested")
    at = found.index("innermost")
    assert found[at : at + 4] == ["innermost", "middle", "outermost", "main"]


def test_a_program_that_uses_ptrace_itself_has_its_functions_by_unwind_tables_alone(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    flags = ["-O1", "-fno-optimize-sibling-calls", *FLAGS["unwind tables alone"]]
    subprocess.run(["cc", *flags, "-o", tmp_path / "nested", INPUTS / "nested.c"], check=True)
    found = names_at(tmp_path / "nested", notified=True)
    at = found.index("innermost")
    assert found[at : at + 4] == ["innermost", "middle", "outermost", "main"]


def test_a_stripped_c_program_has_the_places_of_its_functions(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    subprocess.run(["cc", "-O1", "-s", "-o", tmp_path / "nested", INPUTS / "nested.c"], check=True)
    point = Point("launch", "0", "mkdir", "/tmp/nested", 1)
    found = stack_at(["/mnt/nested"], point, [(tmp_path, "/mnt", True)])
    own = [one for one in found if one.program == "/mnt/nested"]
    assert len(own) >= 3 and all(one.address > 0 and not one.function for one in own[:3])


def test_a_stripped_c_program_has_its_functions_from_its_separate_debug_file(tmp_path: Path) -> None:
    if shutil.which("cc") is None or shutil.which("objcopy") is None:
        pytest.skip("no C compiler, or no binutils")
    whole, program = tmp_path / "whole", tmp_path / "nested"
    flags = ["-O1", "-fno-optimize-sibling-calls", "-Wl,--build-id=sha1"]
    subprocess.run(["cc", *flags, "-o", whole, INPUTS / "nested.c"], check=True)
    subprocess.run(["objcopy", "--strip-all", whole, program], check=True)
    debug, content = whole.read_bytes(), program.read_bytes()
    assert build_id(debug) == build_id(content) is not None
    symbols = subprocess.run(["nm", whole], capture_output=True, text=True, check=True).stdout.splitlines()
    at = next(int(line.split()[0], 16) for line in symbols if line.endswith(" innermost"))
    # Its code begins on the second page, as nearly everywhere.
    start, page = 0x40_0000, 0x1000
    pc = start + at - page + 1
    mapping = (start, start + len(content), page, content)
    places = [walk_stack((pc, 0, 0), b"", [(*mapping, found)])[0] for found in (b"", debug)]
    assert [name for _, _, name in places] == [None, "innermost"]


def with_symbols_within(directory: Path, content: bytes | None = None) -> Path:
    """Build a stripped program with its symbols, or `content`, in .gnu_debugdata."""
    if shutil.which("cc") is None or shutil.which("objcopy") is None:
        pytest.skip("no C compiler, or no binutils")
    whole, program, symbols = directory / "whole", directory / "nested", directory / "symbols"
    subprocess.run(["cc", "-O1", "-fno-optimize-sibling-calls", "-o", whole, INPUTS / "nested.c"], check=True)
    subprocess.run(["objcopy", "--only-keep-debug", whole, symbols], check=True)
    symbols.write_bytes(lzma.compress(symbols.read_bytes()) if content is None else content)
    command = ["objcopy", "--strip-all", "--add-section", f".gnu_debugdata={symbols}", whole, program]
    subprocess.run(command, check=True)
    return program


def test_a_stripped_c_program_has_its_functions_from_the_symbols_within_it(tmp_path: Path) -> None:
    found = names_at(with_symbols_within(tmp_path))
    at = found.index("innermost")
    assert found[at : at + 4] == ["innermost", "middle", "outermost", "main"]


HOSTILE = {
    "no archive": b"\xfd7zXZ\0 and no more",
    "no ELF file": lzma.compress(b"no ELF file"),
    "a part of one": lzma.compress(bytes(range(256)) * 99)[:-40],
    "a file that fills all memory": lzma.compress(bytes(1 << 27), preset=0),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_symbols_within_a_program_that_are_none_are_no_harm(content: bytes, tmp_path: Path) -> None:
    found = names_at(with_symbols_within(tmp_path, content))
    assert len(found) >= 3 and "innermost" not in found


def test_a_program_whose_tables_never_end_has_no_stack_and_holds_up_nobody(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    # DW_CFA_def_cfa_expression: DW_OP_skip, back to itself.
    loops = ".cfi_escape 0x0f, 3, 0x2f, 0xfd, 0xff"
    source = (INPUTS / "nested.c").read_text().replace("return mkdir(", f'__asm__ volatile("{loops}"); return mkdir(')
    (tmp_path / "nested.c").write_text(source)
    subprocess.run(["cc", "-O1", "-o", tmp_path / "nested", tmp_path / "nested.c"], check=True)
    log, line = recorded_at(
        ["/mnt/nested"], Point("launch", "0", "mkdir", "/tmp/nested", 1), [(tmp_path, "/mnt", True)]
    )
    assert walk(log, line, 1) is None


def test_the_stack_of_32_bit_code_is_not_told_and_that_is_said(tmp_path: Path) -> None:
    flags = ["-m32", "-O1", "-nostdlib", "-static", "-ffreestanding", "-fno-pic", "-no-pie", "-fno-stack-protector"]
    program = tmp_path / "i386"
    if shutil.which("cc") is None or subprocess.run(["cc", *flags, "-o", program, INPUTS / "i386.c"]).returncode:
        pytest.skip("no C compiler for i386")
    point = Point("launch", "0", "mkdir", "/tmp/by-i-three", 1)
    _, lines = reported_at(["/mnt/i386"], point, [(tmp_path, "/mnt", True)])
    assert not [line for line in lines if "stack" in line]
    assert [line["note"] for line in lines if "32-bit" in line.get("note", "")]


def test_a_rust_program_has_its_functions(tmp_path: Path) -> None:
    if shutil.which("rustc") is None:
        pytest.skip("no rustc")
    subprocess.run(["rustc", "-O", "-o", tmp_path / "nested", INPUTS / "nested.rs"], check=True)
    found = [name for name in names_at(tmp_path / "nested") if name.startswith("nested::")]
    assert found[:3] == ["nested::innermost", "nested::outermost", "nested::main"]


@pytest.mark.parametrize("notified", [False, True])
def test_a_stripped_go_program_has_its_functions(notified: bool) -> None:
    runc = shutil.which("runc", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if runc is None:
        pytest.skip("no runc")
    point = Point("launch", "0", "open", "/tmp/config.json", 1)
    found = [one.function for one in stack_at([runc, "spec", "--bundle", "/tmp"], point, [], notified=notified)]
    assert found[0].endswith("Syscall6") and "os.OpenFile" in found
    assert found[-3:] == ["main.main", "runtime.main", "runtime.goexit"]


def test_a_program_that_is_deleted_while_it_runs_has_its_functions(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    source = (INPUTS / "nested.c").read_text().replace("int main(void) {", 'int main(void) { unlink("/tmp/copy");')
    (tmp_path / "nested.c").write_text(f"#include <unistd.h>\n{source}")
    subprocess.run(["cc", "-O1", "-o", tmp_path / "nested", tmp_path / "nested.c"], check=True)
    point = Point("launch", "0", "mkdir", "/tmp/nested", 1)
    script = "cp /mnt/nested /tmp/copy; exec /tmp/copy"
    found = stack_at(["/bin/sh", "-c", script], point, [(tmp_path, "/mnt", True)])
    assert "innermost" in [one.function for one in found]
    assert next(one.program for one in found if one.function == "innermost") == "/tmp/copy (deleted)"
