"""What an adapter may say, what is refused and with which words; nothing is run but /bin/sh."""

import json
import os
from pathlib import Path

import msgspec
import pytest

from leakcheck.errors import TargetError, UsageError
from leakcheck.renamed import RenamedWarning
from leakcheck.submissions import BUILTIN, Submission
from leakcheck.targets import Box, Reply, Target, builtin, executables, load
from leakcheck.targets.adapter import Adapter, Damage, Exhaustion, File, Locks, Needs, Probe, StatusReading
from leakcheck.targets.executables import binds, find
from leakcheck.trials import open_host

MINIMAL = """
name = "mine"
summary = "a test's"
launch = ["/bin/sh", "{program}"]
probe = { none = "isolates nothing" }
"""
BOX = Box(number=3, work=Path("/tmp/work"))


def adapter(directory: Path, text: str, *more: str) -> Path:
    path = directory / "mine.toml"
    path.write_text(text + "\n".join(more))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def with_status(directory: Path, status: str) -> Target:
    return load(adapter(directory, MINIMAL, "[status]", status))


def test_a_minimal_adapter_is_enough(tmp_path: Path) -> None:
    target = load(adapter(tmp_path, MINIMAL))
    launch = target.launch(BUILTIN["crash_exit"], BOX)
    assert launch.argv == ["/bin/sh", "/bin/sh", "-c", "exit 3"]
    assert (launch.env, launch.files, target.recover_commands(BOX), target.version()) == ({}, {}, [], "")


def test_every_placeholder_is_filled(tmp_path: Path) -> None:
    text = MINIMAL.replace(
        '"{program}"]',
        '"{program}", "{box} {name} {work} {wall} {cpu} {memory} {memory_kib} {memory_mib} {processes} {{x}}", '
        '"{cpu_exact} {file_size} {output} {bundle}", '
        '"{exe:sh}"]',
    )
    launch = load(adapter(tmp_path, text, 'needs = { binaries = ["sh"] }')).launch(
        Submission(
            name="x",
            program=("a", "{box}"),
            wall=2,
            cpu=0.25,
            memory=64 << 20,
            processes=7,
            file_size=9,
            output=8,
            bundle="/var/cache/x",
        ),
        BOX,
    )
    # What the submission brings is no template.
    assert launch.argv[1:3] == ["a", "{box}"]
    assert launch.argv[3] == "3 leakcheck-mine-3 /tmp/work 2 1 67108864 65536 64 7 {x}"
    assert launch.argv[4] == "0.25 9 8 /var/cache/x"
    assert Path(launch.argv[5]).name == "sh"


@pytest.mark.parametrize(
    ("cpu", "whole", "exact"), [(0.2, "1", "0.2"), (1, "1", "1"), (1.01, "2", "1.01"), (9.0, "9", "9")]
)
def test_processor_time_is_whole_seconds_rounded_up_or_exact(
    tmp_path: Path, cpu: float, whole: str, exact: str
) -> None:
    target = load(adapter(tmp_path, MINIMAL.replace('"{program}"]', '"{program}", "{cpu}", "{cpu_exact}"]')))
    assert target.launch(Submission(name="x", program=("a",), cpu=cpu), BOX).argv[2:] == [whole, exact]


def test_the_place_of_a_bundle_can_be_made_ready(tmp_path: Path) -> None:
    target = load(adapter(tmp_path, MINIMAL, 'prepare = [["mkdir", "-p", "{work}{bundle}"]]'))
    submission = Submission(name="x", program=("a",), bundle="/var/cache/x")
    assert target.prepare_commands(BOX, submission) == [["mkdir", "-p", "/tmp/work/var/cache/x"]]
    assert target.prepare_commands(BOX)[0][2].startswith("/tmp/work/usr/")


def test_what_needs_no_bundle_has_a_directory_to_bind_that_is_there_anyway(tmp_path: Path) -> None:
    target = load(adapter(tmp_path, MINIMAL.replace('"{program}"]', '"{program}", "{bundle}"]')))
    bundle = Path(target.launch(BUILTIN["crash_exit"], BOX).argv[-1])
    assert bundle.is_relative_to("/usr")
    assert bundle.is_dir()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "mine"', "", ": name: missing"),
        ('name = "mine"', 'name = "My Box"', "name: 'My Box' must be lower-case"),
        ('name = "mine"', 'name = "mine"\nlunch = 1', "line 3: lunch: unknown field; one of name, summary"),
        ('name = "mine"', "name = 3", "line 2: name: Expected `str`, got `int`"),
        ('name = "mine"', 'name = "mine', "mine.toml: "),
        ('"{program}"', '"x"', "launch: has no {program}"),
        (
            '"{program}"',
            '"{program}", "{wal}"',
            "launch: unknown placeholder {wal}; allowed here: {box}, {bundle}, {cpu}",
        ),
        ('"{program}"', '"{program}", "{exe:nsjail}"', "{exe:nsjail}; list it in needs.binaries"),
        ('"{program}"', '"--run={program}"', "must be an element of its own"),
        ('["/bin/sh", "{program}"]', "[]", "launch: is empty"),
        (
            '{ none = "isolates nothing" }',
            "{}",
            "probe: give namespaces, hidden, unreadable (fits Landlock)",
        ),
        ('{ none = "isolates nothing" }', '{ none = "x", hidden = true }', "none says that nothing can be checked"),
        ('{ none = "isolates nothing" }', '{ namespaces = ["pod"] }', "unknown type 'pod'; one of cgroup, ipc"),
        ("probe =", "recover = [[]]\nprobe =", "recover: has an empty command"),
        ("probe =", 'recover = [["rm", "{wall}"]]\nprobe =', "recover: unknown placeholder {wall}"),
        ("probe =", 'status = { source = "meta" }\nprobe =', "status.file: missing"),
        ("probe =", 'status = { file = "/x" }\nprobe =', 'source is "exit", which reads no file'),
        ("probe =", 'status = { source = "json", file = "/x", status = "v" }\nprobe =', "go together"),
        ("probe =", 'status = { source = "xml" }\nprobe =', "line 5: status.source: Invalid enum value"),
        ("probe =", 'paths = { locks = ["/x"] }\nprobe =', "line 5: paths: unknown field"),
        (
            "probe =",
            'files = [{ path = "x", text = "" }]\nprobe =',
            "files[0].path: 'x' is not absolute; start it with",
        ),
        ("probe =", 'files = [{ path = "{name}/x", text = "" }]\nprobe =', "files[0].path: '{name}/x' is not absolute"),
        ("probe =", 'status = { source = "meta", file = "m" }\nprobe =', "status.file: 'm' is not absolute"),
        ("probe =", "shortest_wall = nan\nprobe =", "shortest_wall: nan: give seconds above 0, at most 3600"),
        ("probe =", "shortest_wall = -1\nprobe =", "shortest_wall: -1"),
        ("probe =", "shortest_wall = inf\nprobe =", "shortest_wall: inf"),
        ("probe =", 'files = [{ path = "/x" }]\nprobe =', "/x: give either text or json"),
        ("probe =", 'files = [{ path = "/x", json = "no.json" }]\nprobe =', "no.json: no such file"),
        ("probe =", 'files = [{ path = "/x", json = "mine.toml" }]\nprobe =', "is not JSON"),
    ],
)
def test_what_is_wrong_is_refused_by_file_and_field(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in MINIMAL
    assert said in refusal(adapter(tmp_path, MINIMAL.replace(old, new, 1)))


def test_all_faults_are_in_one_answer_each_with_its_field_and_line(tmp_path: Path) -> None:
    text = '''name = "My Box"
launch = [
  "/bin/sh", "{wal}",
]
lunch = """
name = 3
"""
probe = { namespaces = ["pod"] }
[status]
source = "meta"
absent = "FINE"
[[files]]
path = "/x"
text = ""
[[files]]
path = "y"
text = "{z}"
mode = 1
'''
    said = refusal(adapter(tmp_path, text)).partition("mine.toml: ")[2]
    assert said.startswith("summary: missing")
    for words in (
        "line 1: name: 'My Box' must be lower-case",
        "line 5: lunch: unknown field",
        "line 8: probe.namespaces: unknown type 'pod'",
        "line 11: status.absent: Invalid enum value 'FINE'",
        "line 18: files[1].mode: unknown field",
    ):
        assert words in said


def test_a_wrong_table_or_template_hides_no_wrong_placeholder(tmp_path: Path) -> None:
    text = MINIMAL.replace('"{program}"', '"{program}", "{wal}", "{exe:sh}"')
    said = refusal(adapter(tmp_path, text, "needs = { binarys = [] }", 'files = [{ path = "/{x}", json = "no.json" }]'))
    assert "launch: unknown placeholder {wal}" in said
    assert "needs.binarys: unknown field" in said
    assert "files[0]: json: " in said and "no.json: no such file" in said
    assert "exe:sh}; list" not in said


def test_contradictions_in_several_fields_are_told_together(tmp_path: Path) -> None:
    text = MINIMAL.replace('"{program}"', '"{wal}"').replace("probe =", 'cwd = "here"\noutput = "x"\nprobe =')
    said = refusal(adapter(tmp_path, text, 'binds = ["run", "/"]', "finish = [[]]", "[[files]]", 'path = "/x"'))
    assert "line 5: cwd: 'here/' is not absolute" in said
    assert "line 6: output: 'x' is not absolute" in said
    assert "line 8: binds: 'run': give an absolute path below / and '/': give" in said
    assert "line 9: finish: has an empty command" in said
    assert "line 10: files[0]: /x: give either text or json" in said


def test_the_documentation_has_a_row_for_every_field_and_for_no_other() -> None:
    rows = {}
    for line in (Path(__file__).parents[2] / "docs/how-to/adapter.md").read_text().splitlines():
        if (cells := [cell.strip() for cell in line.split("|")])[:1] == [""] and len(cells) == 5 and "`" in cells[1]:
            rows[cells[1].strip("`")] = cells[2]
    fields = {}
    for prefix, kind in (
        ("", Adapter),
        ("needs.", Needs),
        ("files.", File),
        ("status.", StatusReading),
        ("probe.", Probe),
        ("damage.", Damage),
        ("exhaustion.", Exhaustion),
        ("locks.", Locks),
    ):
        for field in msgspec.structs.fields(kind):
            # A table has a row for each of its fields.
            if field.name not in ("needs", "files", "status", "probe", "damage", "exhaustion", "locks") or prefix:
                default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory
                empty = [] if default is list else {} if default is dict else default
                fields[prefix + field.name] = "required" if field.required else f"`{json.dumps(empty)}`"
    unset = {"`null`": "not set"}
    assert rows == {name: unset.get(default, default) for name, default in fields.items()}


def test_an_unique_name_is_that_of_the_run_and_a_cwd_and_an_output_are_of_the_box(tmp_path: Path) -> None:
    text = MINIMAL.replace('"{program}"]', '"{unique}", "{program}"]')
    fields = 'cwd = "{work}/in"', 'output = "{work}/out"', 'finish = [["rm", "{unique}"]]', 'state = ["/run/{unique}"]'
    target = load(adapter(tmp_path, text, *fields))
    one, other = (msgspec.structs.replace(BOX, run=run) for run in ("a1", "b2"))
    assert target.launch(BUILTIN["ok"], one).argv[1] == "leakcheck-mine-3-a1"
    assert target.finish_commands(other) == [["rm", "leakcheck-mine-3-b2"]]
    assert (target.cwd(one), target.output_file(one)) == ("/tmp/work/in", Path("/tmp/work/out"))
    assert target.owns("/run/leakcheck-mine-3-a1/x", one)
    assert not target.owns("/run/leakcheck-mine-4-a1/x", one)


def test_a_users_directory_goes_before_the_checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = tmp_path / "theirs/bin/box", tmp_path / "checkout/.targets/bin/box"
    for program in (theirs, ours):
        program.parent.mkdir(parents=True)
        program.write_text("")
        program.chmod(0o755)
    monkeypatch.setattr(executables, "_CHECKOUT", tmp_path / "checkout")
    assert find("box") == str(ours)
    monkeypatch.setenv("LEAKCHECK_TARGETS", str(tmp_path / "theirs"))
    assert find("box") == str(theirs)
    assert find(str(ours)) == str(ours)


def test_an_adapter_for_arenas_only_refuses_the_live_host(tmp_path: Path) -> None:
    target = load(adapter(tmp_path, MINIMAL, "arena_only = true"))
    with pytest.raises(UsageError, match=r"--host: mine runs in arenas only.*omit --host"):
        open_host(target, 0, live=True)


def test_an_adapter_that_is_not_there_is_refused_by_its_path(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.toml")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown target 'docker': one of bwrap, .*youki, or the path"):
        load("docker")


def test_json_takes_arguments_unquoted_and_numbers_as_numbers(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(
        '{"args": ["{wall}", "{program}"], "limit": "{number:memory}", "deep": [{"n": "{name}"}]}'
    )
    target = load(adapter(tmp_path, MINIMAL, 'files = [{ path = "{work}/c.json", json = "b.json" }]'))
    hostile = ("/bin/echo", 'a"b\\\n{name}')
    launch = target.launch(Submission(name="x", program=hostile, wall=5, memory=9), BOX)
    filled = json.loads(launch.files["/tmp/work/c.json"])
    assert filled == {"args": ["5", *hostile], "limit": 9, "deep": [{"n": "leakcheck-mine-3"}]}


@pytest.mark.parametrize(
    ("code", "reply"),
    [
        (0, Reply("OK", exit_code=0)),
        (3, Reply("RE", exit_code=3)),
        (124, Reply("TLE", exit_code=124)),
        (126, Reply("IE", exit_code=126)),
        (139, Reply("RE", signal=11)),
        (-11, Reply("RE", signal=11)),
        (255, Reply("RE", exit_code=255)),
    ],
)
def test_an_exit_code_reads_as_a_status(tmp_path: Path, code: int, reply: Reply) -> None:
    assert with_status(tmp_path, "timeout = [124]\ninternal = [126]").status(code, BOX) == reply


META = """
source = "meta"
file = "{work}/meta"
status = "status"
statuses = { TO = "TLE", SG = "RE" }
absent = "OK"
exit_code = "exitcode"
signal = "exitsig"
"""
JSON = META.replace('"meta"', '"json"')


@pytest.mark.parametrize(
    ("status", "text", "reply"),
    [
        (META, "time:0.1\nexitcode:0\n", Reply("OK", exit_code=0)),
        (META, "status:TO\nmessage:a:b\n", Reply("TLE")),
        (META, "exitsig:11\nstatus:SG\n", Reply("RE", signal=11)),
        (JSON, '{"status": "TO", "exitcode": null}', Reply("TLE")),
        (JSON, '{"exitcode": 3, "exitsig": 0}', Reply("RE", exit_code=3)),
    ],
)
def test_a_status_file_reads_as_a_status(tmp_path: Path, status: str, text: str, reply: Reply) -> None:
    (tmp_path / "meta").write_text(text)
    assert with_status(tmp_path, status).status(0, Box(number=0, work=tmp_path)) == reply


@pytest.mark.parametrize(
    ("status", "content", "said"),
    [
        (META, None, r"no such file or directory; the target ended with 2 before it had written one"),
        (META, b"\x80", "not UTF-8 at byte 0"),
        (META, b"status:TO\ngarbage", "line 2 is not key:value: 'garbage'"),
        (META, b"status:ZZ", "unknown status 'ZZ', not of TO, SG"),
        (META, b"exitcode:many", "exitcode is not a number: 'many'"),
        (META.replace('absent = "OK"', ""), b"exitcode:0", "has no status"),
        (JSON, b"", "empty; the target ended with 2"),
        (META, b"", "empty; the target ended with 2"),
        (JSON, b"[1]", "not a JSON object"),
        (JSON, b'{"status": "T', "not JSON"),
    ],
)
def test_an_absent_or_garbled_status_file_is_an_error_and_no_pass(
    tmp_path: Path, status: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "meta").write_bytes(content)
    with pytest.raises(TargetError, match=f"mine: status file {tmp_path}/meta: .*{said}"):
        with_status(tmp_path, status).status(2, Box(number=0, work=tmp_path))


def test_the_old_words_of_an_adapter_are_read_with_a_warning_that_names_the_new_ones(tmp_path: Path) -> None:
    old = META.replace("\nstatus = ", "\nverdict = ").replace("\nstatuses = ", "\nverdicts = ")
    with pytest.warns(RenamedWarning) as warned:
        target = with_status(tmp_path, old)
    assert target.adapter == with_status(tmp_path, META).adapter
    where = f"adapter {tmp_path}/mine.toml: status: "
    assert [str(one.message).removeprefix(where) for one in warned] == [
        "verdict is now called status",
        "verdicts is now called statuses",
    ]
    with pytest.raises(UsageError, match="verdict is now called status; give one of the two"):
        with_status(tmp_path, META + 'verdict = "status"')


def test_a_missing_program_is_told_with_the_way_to_install_it(tmp_path: Path) -> None:
    needs = 'needs = { binaries = ["no-such-sandbox", "sh"], install = "apt-get install nothing" }'
    target = load(adapter(tmp_path, MINIMAL, needs))
    state = target.availability()
    assert (state.state, state.hint) == ("missing", "apt-get install nothing")
    assert state.reason.startswith("no no-such-sandbox in ")
    with pytest.raises(TargetError, match=r"no no-such-sandbox .*; install it: apt-get install nothing"):
        target.launch(BUILTIN["ok"], BOX)


def test_a_target_that_needs_root_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = load(adapter(tmp_path, MINIMAL, "needs = { root = true }"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    state = target.availability()
    assert (state.state, state.reason) == ("unable", "only root can run it")


def test_programs_are_looked_up_in_leakcheck_targets_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin/very-own-sandbox"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho banner\necho '|__ 4.2'\n")
    program.chmod(0o755)
    needs = 'version = ["{exe:very-own-sandbox}"]\nneeds = { binaries = ["very-own-sandbox"] }'
    target = load(adapter(tmp_path, MINIMAL, needs))
    assert target.availability().state == "missing"
    monkeypatch.setenv("LEAKCHECK_TARGETS", str(tmp_path))
    assert target.availability().state == "ready"
    assert target.version() == "4.2"


def test_the_probe_tells_each_isolation_that_is_off(tmp_path: Path) -> None:
    probe = 'probe = { namespaces = ["pid", "net", "mnt"], hidden = true, kernel = true }'
    target = load(adapter(tmp_path, MINIMAL.replace('probe = { none = "isolates nothing" }', probe)))
    outside = "ns pid pid:[1]\nns net net:[2]\nns mnt mnt:[3]\nkernel #5 ours\nprobe ran\n"
    isolated = "ns pid pid:[7]\nns net net:[8]\nns mnt mnt:[9]\nkernel #1 other\nprobe ran\n"
    assert target.isolation_gaps(isolated, outside) == []
    bare = "ns pid pid:[1]\nns net net:[8]\nns mnt \nseen marker\nkernel #5 ours\nprobe ran\n"
    gaps = target.isolation_gaps(bare, outside)
    assert [gap.split(",")[0] for gap in gaps] == [
        "the payload is in the outside's pid namespace",
        "the payload could not read its mnt namespace",
        "the payload sees a file of the outside that the target should hide",
        "the payload runs on our kernel",
    ]
    assert target.isolation_gaps("ns pid pid:[7]\n", outside) == [
        "the probe did not finish, or its output does not come back"
    ]


def test_the_probe_of_a_sandbox_of_landlock_or_seccomp_alone_tells_where_it_is_off_and_what_holds(
    tmp_path: Path,
) -> None:
    text = MINIMAL.replace('{ none = "isolates nothing" }', "{ unreadable = true, seccomp = true }")
    target = load(adapter(tmp_path, text))
    outside = "ns pid pid:[1]\nseen marker\nread marker\nSeccomp: 2\nSeccomp_filters: 1\nkernel #5\nprobe ran\n"
    inside = outside.replace("read marker\n", "").replace("filters: 1", "filters: 2")
    assert target.isolation_gaps(inside, outside) == []
    assert target.what_differs(inside, outside) == "probe = { unreadable = true, seccomp = true }"
    assert target.isolation_gaps(outside, outside) == [
        "the payload reads a file of the outside that the target should keep from it",
        "the payload has no seccomp filter that the outside does not have",
    ]
    assert target.what_differs(outside, outside) == ""
    old = "Seccomp: 0\nprobe ran\n", "Seccomp: 2\nseen marker\nread marker\nprobe ran\n"
    assert target.what_differs(old[1], old[0]) == "probe = { seccomp = true }"
    other = "ns pid pid:[2]\nns net \nkernel #6\nSeccomp: x\nprobe ran\n"
    assert target.what_differs(other, outside) == 'probe = { namespaces = ["pid"], hidden = true, kernel = true }'


def test_the_built_in_targets_are_those_that_the_design_names() -> None:
    names = (
        "bwrap codex command crun deepagents edx-codejail firejail hakoniwa inspect-ai isolate lxc mini-swe-agent "
        "nsjail nspawn podman proot refbox runc runc-new runsc sandlock srt subprocess swe-rex unshare youki"
    )
    assert " ".join(target.name for target in builtin()) == names
    for target in builtin():
        assert target.path.stem == target.name
        assert target.adapter.needs.install


def test_no_directory_that_an_arena_replaces_is_bound_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def bound(*needed: str) -> list[str]:
        return [source for source, place, read_only in binds(needed) if source == place and read_only]

    assert bound("/usr/bin/sh", "/opt/x/tool") == []
    assert bound("/tmp/my/bin/tool", "/run/tool", "/dev/shm/tool", "/var/tmp/a/tool") == [
        "/dev/shm/tool",
        "/run/tool",
        "/tmp/my/bin",
        "/var/tmp/a",
    ]
    monkeypatch.setenv("LEAKCHECK_TARGETS", "/tmp/my")
    assert bound("/tmp/my/bin/tool") == ["/tmp/my"]
    monkeypatch.setenv("LEAKCHECK_TARGETS", "/tmp")
    assert bound("/tmp/bin/tool") == ["/tmp/bin"]


@pytest.mark.parametrize("name", ["crun", "podman", "runc", "runc-new", "runsc", "youki"])
def test_no_container_gets_the_name_of_another_and_recovery_knows_that_of_its_own(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leakcheck.targets.target.find", lambda program: f"/bin/{program}")
    target = load(name)
    one, other = (msgspec.structs.replace(BOX, run=run) for run in ("a1", "b2"))
    assert any(word.endswith("-a1") for word in target.launch(BUILTIN["ok"], one).argv)
    for box, others in ((one, "b2"), (other, "a1")):
        words = [word for argv in target.recover_commands(box) for word in argv]
        assert any(word.endswith(f"-{box.run}") for word in words)
        assert not any(others in word for word in words)


AGENTS = ("deepagents", "edx-codejail", "inspect-ai", "mini-swe-agent", "swe-rex")


@pytest.mark.parametrize("name", AGENTS)
def test_what_agents_use_says_how_to_install_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executables, "_CHECKOUT", tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("LEAKCHECK_TARGETS", raising=False)
    state = load(name).availability()
    assert (state.state, state.hint) == ("missing", "make targets-agents")
    assert f"no {name}-python" in state.reason


def test_the_version_of_nsjail_is_in_a_file_beside_it_or_its_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin/nsjail"
    program.parent.mkdir()
    program.write_text("")
    program.chmod(0o755)
    monkeypatch.setenv("LEAKCHECK_TARGETS", str(tmp_path))
    assert load("nsjail").version() == "sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (program.parent / "nsjail.version").write_text("nsjail 3.6\n")
    assert load("nsjail").version() == "nsjail 3.6"
