"""What a run leaves on a host where others were before it: daemons, tables, mounts, and what the kernel starts."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from waiting import wait_until

from leakcheck._bin import helper
from leakcheck.render import lines
from leakcheck.report import Report
from tests.cases.conftest import CASE

INPUTS = Path(__file__).parent / "inputs"
Case = Callable[..., Any]

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0,
    reason="mounts, cgroups and other processes' files need root that may make namespaces",
)

ALONE = ("unshare", "-m", "--propagation", "private")
FAN_MNT = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 14)


def exits(outcome: Any) -> list[int]:
    """The exit codes that the script printed; the report's own ``(exit 0)`` is the command's."""
    return [int(number) for number in re.findall(r"^exit (\d+)", outcome.text, re.MULTILINE)]


def seen(outcome: Any) -> str:
    """The report without the lines of what others did meanwhile."""
    return "\n".join(line for line in outcome.text.splitlines() if not line.startswith("  others"))


class TestMountNamespaces:
    def test_a_mount_that_only_a_daemons_namespace_keeps_is_leaked(self, case: Case) -> None:
        outcome = case(*ALONE, "bash", "{mount_in_daemon_run.sh}")
        assert exits(outcome) == [1], outcome.text
        mount = next(line for line in outcome.text.splitlines() if "/mnt/pbj: pbj" in line)
        if FAN_MNT:
            assert "nothing ties it to the run" not in mount, "the kernel tells who attached it"

    SLAVE = """
        mount -t tmpfs base /mnt; mount --make-shared /mnt; mkdir /mnt/src
        unshare -m --propagation slave sh -c '{daemon}' </dev/null >/dev/null 2>&1 & d=$!
        until [ "$(readlink /proc/$d/ns/mnt)" != "$(readlink /proc/self/ns/mnt)" ]; do sleep 0.02; done
        leakcheck guard --kinds mount -- sh -c '{run}'; echo "exit $?"; kill $d
    """

    def in_slave(self, case: Case, run: str, daemon: str = "exec sleep 40") -> Any:
        return case(*ALONE, "sh", "-c", self.SLAVE.format(run=run, daemon=daemon))

    def test_a_bind_mount_that_only_a_daemons_namespace_keeps_is_leaked(self, case: Case) -> None:
        run = "mkdir /mnt/b; mount --bind /mnt/src /mnt/b; mount --make-private /mnt; umount /mnt/b"
        outcome = self.in_slave(case, run)
        assert exits(outcome) == [1], outcome.text
        assert "/mnt/b: base" in outcome.text

    def test_a_mount_that_stays_here_too_is_one_leak(self, case: Case) -> None:
        outcome = self.in_slave(case, "mkdir /mnt/b; mount -t tmpfs pbk /mnt/b")
        assert exits(outcome) == [1], outcome.text
        assert seen(outcome).count("pbk") - outcome.text.count("after sh") == 1, outcome.text

    def test_a_mount_that_goes_everywhere_is_none(self, case: Case) -> None:
        outcome = self.in_slave(case, "mkdir /mnt/b; mount -t tmpfs pbj /mnt/b; umount /mnt/b")
        assert exits(outcome) == [0], outcome.text

    def test_a_tree_that_only_the_directory_of_a_thread_keeps_is_leaked(self, case: Case) -> None:
        script = (
            "mount -t tmpfs none /srv && mkdir /srv/m && "
            "leakcheck guard --kinds mount --settle 0.1 -- python3 {thread_cwd.py} /srv/m 100"
        )
        # In a pid namespace it ends with its case.
        ended = ("--pid", "--fork", "--mount-proc", "--kill-child")
        outcome = case(*ALONE, *ended, "sh", "-c", script + '; echo "exit $?"')
        assert exits(outcome) == [1], outcome.text
        assert "1 leak " in outcome.text and re.search(r"^  mount .*cwd of \d+", outcome.text, re.M), outcome.text

    def test_what_the_daemon_mounts_in_its_namespace_is_its_own(self, case: Case) -> None:
        daemon = (
            "until [ -e /mnt/go ]; do sleep 0.02; done; mount -t tmpfs own /mnt/src; touch /mnt/done; exec sleep 40"
        )
        run = "touch /mnt/go; until [ -e /mnt/done ]; do sleep 0.02; done"
        outcome = self.in_slave(case, run, daemon)
        assert exits(outcome) == [0 if FAN_MNT else 1], outcome.text


class TestSubmounts:
    def test_files_in_mounts_below_a_root_are_seen(self, case: Case) -> None:
        # It makes /run/lock and /run/user/0 where they are missing: in a /run of its own.
        outcome = case("unshare", "-m", "sh", "-c", "mount -t tmpfs run /run && exec sh {submount_of_root.sh}")
        assert exits(outcome) == [1], outcome.text
        for path in ("/run/lock/judge.lock", "/run/user/0/netns", "/run/user/0/netns/netns-1"):
            assert f" {path} " in outcome.text
        assert "nothing ties it to the run" not in outcome.text

    def guarded(self, case: Case, tmp_path: Path, before: str, run: str) -> Any:
        guard = f'leakcheck guard --kinds file,mount --roots "$1" -- sh -c \'{run}\' sh "$1"'
        script = f'mkdir "$1/a" "$1/b"; {before}\n{guard}; echo "exit $?"'
        root = tmp_path / "root"
        root.mkdir()
        return case(*ALONE, "sh", "-c", script, "sh", str(root))

    def test_a_mount_of_the_run_is_one_leak_whatever_is_in_it(self, case: Case, tmp_path: Path) -> None:
        outcome = self.guarded(case, tmp_path, "", 'mount -t tmpfs pbs "$1/a"; touch "$1/a/1" "$1/a/2"')
        assert exits(outcome) == [1], outcome.text
        assert "clean" not in outcome.text and "1 leak " in outcome.text, outcome.text

    def test_a_directory_of_old_files_that_the_run_binds_is_one_leak(self, case: Case, tmp_path: Path) -> None:
        outcome = self.guarded(case, tmp_path, "", 'mount --bind /etc "$1/a"')
        assert exits(outcome) == [1] and "1 leak " in outcome.text, outcome.text

    def test_a_file_system_that_is_bound_twice_is_one_place(self, case: Case, tmp_path: Path) -> None:
        before = 'mount -t tmpfs pbs "$1/a"; mount --bind "$1/a" "$1/b"'
        outcome = self.guarded(case, tmp_path, before, 'touch "$1/b/1"')
        assert exits(outcome) == [1] and "1 leak " in outcome.text, outcome.text

    def test_a_root_bound_below_itself_ends(self, case: Case, tmp_path: Path) -> None:
        outcome = self.guarded(case, tmp_path, 'mount --bind "$1" "$1/a"', 'touch "$1/b/1"')
        assert exits(outcome) == [1] and "1 leak " in outcome.text, outcome.text

    def test_a_file_in_a_mount_within_a_mount_is_seen(self, case: Case, tmp_path: Path) -> None:
        before = 'mount -t tmpfs pbs "$1/a"; mkdir "$1/a/c"; mount -t tmpfs pbs "$1/a/c"'
        outcome = self.guarded(case, tmp_path, before, 'touch "$1/a/c/1"')
        assert exits(outcome) == [1] and "/root/a/c/1 " in outcome.text, outcome.text

    def test_two_snapshots_compare_the_mounts_that_both_have(self, case: Case, tmp_path: Path) -> None:
        script = """
            cd "$1"; mkdir r r/a r/b; mount -t tmpfs old r/a
            leakcheck snapshot --kinds file --roots r -o one; touch r/a/1; mount -t tmpfs new r/b; touch r/b/2
            leakcheck snapshot --kinds file --roots r -o two; leakcheck diff one two; echo "exit $?"
        """
        outcome = case(*ALONE, "sh", "-c", script, "sh", str(tmp_path))
        assert exits(outcome) == [1] and "/r/a/1 " in outcome.text and "/r/b/2" not in outcome.text, outcome.text

    def test_a_file_in_a_mount_of_an_arenas_root_is_seen(self, case: Case) -> None:
        recover = "touch /tmp/m/late"
        run = "mkdir /tmp/m; mount -t tmpfs pbs /tmp/m"
        outcome = case(
            "sh",
            "-c",
            f"leakcheck guard --arena --kinds file,mount --recover '{recover}' -- sh -c '{run}'; echo exit $?",
        )
        assert exits(outcome) == [1] and "pbs" in outcome.text, outcome.text

    @pytest.mark.skipif(not Path("/sys/fs/cgroup/unified").is_dir(), reason="no hybrid cgroup host")
    def test_files_beside_the_cgroup_hierarchies_are_seen(self, case: Case) -> None:
        name = f"/sys/fs/cgroup/pb-{os.getpid()}"
        try:
            outcome = case(
                "sh", "-c", f"leakcheck guard -- sh -c 'mkdir {name}; touch {name}/cgroup.procs'; echo exit $?"
            )
        finally:
            shutil.rmtree(name, ignore_errors=True)
        assert exits(outcome) == [1], outcome.text
        assert f"dir {name} " in outcome.text and f"file {name}/cgroup.procs " in outcome.text


@pytest.mark.skipif(shutil.which("iptables") is None, reason="no iptables here")
def test_a_chain_and_rules_in_an_old_table_are_leaked(case: Case) -> None:
    outcome = case("unshare", "-n", "sh", "{nft_chain.sh}")
    assert exits(outcome) == [1], outcome.text
    assert "nftables chain ip nat CNI-DN-0123" in outcome.text


@pytest.mark.skipif(None in map(shutil.which, ("ip", "tc")), reason="no ip(8) or tc(8) here")
class TestRouting:
    """In a network namespace that is older than the run."""

    def labels(self, case: Case, *commands: str, before: str = "true") -> list[str]:
        guard = f'leakcheck guard --json --kinds net -- sh -ec "{"; ".join(commands)}"; echo "exit $?"'
        outcome = case("unshare", "-n", "sh", "-c", f"ip link set lo up; {before}; {guard}")
        found = re.findall(r'"label":"([^"]*)"', outcome.text)
        assert exits(outcome) == [1 if found else 0], outcome.text
        return sorted(found)

    def test_who_says_that_it_ends_by_itself_or_is_of_dhcp_or_a_router_is_not_believed(self, case: Case) -> None:
        assert self.labels(
            case,
            "ip address add 10.77.0.1/32 dev lo valid_lft 5000 preferred_lft 5000",
            "ip route add 198.51.100.0/24 dev lo proto dhcp",
            "ip -6 route add 2001:db8::/32 dev lo proto ra expires 5000",
        ) == [
            "address 10.77.0.1/32 dev lo",
            "route unicast 198.51.100.0/24 table 254 metric 0 dev lo",
            "route unicast 2001:db8::/32 table 254 metric 1024 dev lo",
        ]

    def test_what_configures_it_is_leaked_each_part_by_itself(self, case: Case) -> None:
        assert self.labels(
            case,
            "ip address add 10.77.0.1/24 dev lo",
            "ip route add blackhole 198.51.100.0/24 proto kernel",
            "ip route add local 10.77.0.9/32 dev lo proto kernel table local",
            "ip rule add from 203.0.113.1 lookup 7",
            "ip link property add dev lo altname other",
            "tc qdisc add dev lo clsact",
            "ip address add fe80::77/64 dev lo",
        ) == [
            "address 10.77.0.1/24 dev lo",
            "address fe80::77/64 dev lo",
            "alternative interface name other of lo",
            "queueing discipline clsact ffff: parent fffffff1 dev lo",
            "route blackhole 198.51.100.0/24 table 254 metric 0",
            "route local 10.77.0.9/32 table 255 metric 0 dev lo",
            "routing rule priority 32765 from 203.0.113.1/32 to all table 7 action 1 family 2 tos 0 flags 0",
        ]

    def test_what_the_kernel_makes_is_none(self, case: Case) -> None:
        veth = "ip link add v0 type veth peer name v1; ip link set v1 up"
        assert self.labels(case, "ip link set lo down", "ip link set lo up", "ip link set v0 up", before=veth) == []

    def test_what_decides_about_packets_is_leaked(self, case: Case) -> None:
        assert self.labels(
            case,
            "ip neighbour add 2001:db8::9 lladdr 02:00:00:00:00:09 dev lo",
            "ip xfrm policy add dir out src 192.0.2.0/24 dst 198.51.100.0/24",
            "tc filter add dev lo ingress pref 5 u32 match u32 0 0",
            "tc class add dev lo parent 1: classid 1:7 htb rate 1mbit",
            before="tc qdisc add dev lo clsact; tc qdisc add dev lo root handle 1: htb",
        ) == [
            "IPsec policy out from 192.0.2.0/24 to 198.51.100.0/24 protocol 0 action 0 priority 0 index 1",
            "class of traffic control htb 1:7 parent ffffffff dev lo",
            "filter of traffic control u32 80000800 parent fffffff2 chain 0 pref 5 protocol 3 dev lo",
            "neighbour 2001:db8::9 at 020000000009 dev lo",
        ]

    def test_another_network_namespace_that_is_older_is_looked_at_as_well(self, case: Case) -> None:
        other = "unshare -n sleep 60 & while [ $(readlink /proc/$!/ns/net) = $(readlink /proc/$$/ns/net) ]; do :; done"
        inside = "nsenter -t $! -n ip route add blackhole 198.51.100.0/24"
        found = self.labels(case, inside, before=f"{other}; trap 'kill $!' EXIT")
        assert found == ["route blackhole 198.51.100.0/24 table 254 metric 0"]


@pytest.mark.skipif(shutil.which("iptables-legacy") is None, reason="no legacy iptables here")
class TestLegacyIptables:
    @pytest.fixture(autouse=True)
    def lock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XTABLES_LOCKFILE", "/dev/null")

    def labels(self, case: Case, *commands: str) -> list[str]:
        found = TestRouting().labels(case, *commands, before="iptables-legacy -A INPUT -s 192.0.2.1 -j DROP")
        return [re.sub(" [0-9a-f]{16}", "", label) for label in found]

    def test_chains_rules_and_policies_are_leaked(self, case: Case) -> None:
        assert self.labels(
            case,
            "iptables-legacy -N mine",
            "iptables-legacy -A mine -j DROP",
            "iptables-legacy -I INPUT -s 192.0.2.2 -j mine",
            "iptables-legacy -A INPUT -s 192.0.2.1 -j DROP",
            "iptables-legacy -P FORWARD DROP",
            "ip6tables-legacy -t raw -A OUTPUT -d 2001:db8::1 -j NOTRACK",
        ) == [
            "iptables chain ip filter mine",
            "iptables rule ip filter FORWARD: from any to any DROP",
            "iptables rule ip filter INPUT: from 192.0.2.1 to any DROP (2)",
            "iptables rule ip filter INPUT: from 192.0.2.2 to any mine",
            "iptables rule ip6 raw OUTPUT: from any to 2001:db8::1 CT",
        ]

    def test_who_only_looks_or_takes_away_what_it_added_leaves_none(self, case: Case) -> None:
        rule = "INPUT -s 192.0.2.2 -j DROP"
        look = "iptables-legacy -t nat -L -n"
        assert self.labels(case, f"{look} >/dev/null", f"iptables-legacy -I {rule}", f"iptables-legacy -D {rule}") == []


class TestNftables:
    """By mkleak, which needs no nft(8); it is another's process, and nothing tells who changed a table."""

    PLANT = """
        cd "$1"; mkfifo in; exec 3<>in; {before}
        leakcheck guard --json --kinds net -- sh -c '{run}' "$2" "$3" 3>&-; echo "exit $?"; exec 3>&-
    """
    WAIT = "until grep -q {} out; do sleep 0.02; done"

    def labels(self, case: Case, tmp_path: Path, plant: str, before: str, run: str) -> list[str]:
        script = self.PLANT.format(before=before, run=run + self.WAIT.format("READY"))
        plan = ("sh", "-c", script, "sh", str(tmp_path), str(helper("mkleak")), plant)
        outcome = case("unshare", "-n", "--pid", "--fork", "--mount-proc", "--kill-child", *plan)
        assert exits(outcome) == [1], outcome.text
        return re.findall(r'"label":"(nftables \w+) inet leakcheck-mkleak-', outcome.text)

    def in_old(self, case: Case, tmp_path: Path, plant: str) -> list[str]:
        before = f'"$2" "$3" --hold <in >out 3>&- & {self.WAIT.format("WAITING")}'
        return self.labels(case, tmp_path, plant, before, "echo >in; ")

    def test_a_chain_in_an_old_table_is_leaked(self, case: Case, tmp_path: Path) -> None:
        assert self.in_old(case, tmp_path, "net-nft-chain") == ["nftables chain"]

    def test_a_rule_in_an_old_chain_is_leaked(self, case: Case, tmp_path: Path) -> None:
        assert self.in_old(case, tmp_path, "net-nft-rule") == ["nftables rule"]

    def test_a_table_is_one_leak_with_all_that_is_in_it(self, case: Case, tmp_path: Path) -> None:
        found = self.labels(case, tmp_path, "net-nft-rule", "", '"$0" "$1" <in >out & ')
        assert found == ["nftables table"]


@pytest.mark.skipif(
    not Path("/proc/2/comm").is_file() or Path("/proc/2/comm").read_text() != "kthreadd\n",
    reason="what the kernel starts runs outside of this pid namespace",
)
@pytest.mark.skipif(not Path("/sys/fs/cgroup/pids").is_dir(), reason="no cgroup v1 here")
def test_what_the_kernel_starts_is_not_taken_for_a_strangers(case: Case) -> None:
    outcome = case("sh", "{release_agent.sh}")
    assert exits(outcome) == [1], outcome.text
    assert "(sleep)" in outcome.text and f"/tmp/{CASE}-left" in outcome.text


def listens(path: str) -> bool:
    """Whether somebody accepts connections to a unix socket (__SO_ACCEPTCON, unix(7))."""
    lines = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return any(line[3] == "00010000" and line[-1] == path for line in lines)


class TestDaemons:
    @contextmanager
    def daemon(self, tmp_path: Path) -> Generator[tuple[int, str]]:
        path = str(tmp_path / "socket")
        program = [sys.executable, str(INPUTS / "daemon_client.py")]
        null = subprocess.DEVNULL
        with subprocess.Popen([*program, "daemon", path], stdin=null, stdout=null, stderr=null) as process:
            try:
                wait_until("the daemon listens", lambda: listens(path))
                yield process.pid, path
            finally:
                listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                # Before the daemon: while it lives nobody takes their numbers.
                for pid in listed:
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), 9)
                process.kill()

    def test_a_daemon_that_acted_is_named_with_how_to_guard_it(self, case: Case, tmp_path: Path) -> None:
        client = shlex.join([sys.executable, str(INPUTS / "daemon_client.py"), "client"])
        saved = tmp_path / "report.json"
        with self.daemon(tmp_path) as (pid, path):
            asked = "; ".join(f"{client} {path} {what}" for what in ("process", "zombie", "file"))
            guard = f"leakcheck guard --kinds process,file -o {saved} -- sh -c {shlex.quote(asked)}"
            outcome = case("sh", "-c", f"{guard}; echo exit $?")
            scoped = case("sh", "-c", f"leakcheck guard --scope tree:{pid} -- {client} {path} process; echo exit $?")
        assert exits(outcome) == [0] and "\n  others " in outcome.text, outcome.text
        # Others may have made more meanwhile, and only the first few are shown.
        report = Report.from_json(saved.read_bytes())
        report = msgspec.structs.replace(report, others=[other for other in report.others if other.pid == pid])
        note = next(line.plain for line in lines(report) if line.plain.startswith("  others"))
        assert f"{pid} (python" in note and "2 process, 1 file" in note, note
        assert f"--scope tree:{pid}" in note
        assert exits(scoped) == [1], scoped.text

    def test_the_json_has_who_acted(self, case: Case, tmp_path: Path) -> None:
        client = shlex.join([sys.executable, str(INPUTS / "daemon_client.py"), "client"])
        with self.daemon(tmp_path) as (pid, path):
            outcome = case("sh", "-c", f"leakcheck guard --json -- {client} {path} process; echo exit $?")
        assert exits(outcome) == [0], outcome.text
        report = json.loads(next(line for line in outcome.text.splitlines() if line.startswith("{")))
        assert [other["listens"] for other in report["others"] if other["pid"] == pid] == [True], report["others"]


class TestHungFileSystems:
    """A FUSE server that does not answer: everything in namespaces of its own, which end with it."""

    BOX = ("unshare", "-m", "--propagation", "private", "--pid", "--fork", "--mount-proc", "--kill-child")

    def bounded(self, case: Case, tmp_path: Path, script: str) -> Any:
        began = time.monotonic()
        # Words of a command: there must be no space in them.
        shutil.copy(INPUTS / "fuse_hang.py", tmp_path)
        env = 'M="$1"/m; mkdir -p "$M"; fuse="python3 $1/fuse_hang.py"\n'
        env += 'guard="timeout -s KILL 90 leakcheck guard"\n'
        outcome = case(*self.BOX, "sh", "-c", env + script, "sh", str(tmp_path), timeout=280)
        # The server gives up after 200 s or more, and so do they who wait for it.
        assert "late" not in outcome.text, f"{time.monotonic() - began}: {outcome.text}"
        return outcome

    def test_roots_and_lock_files_on_one_are_a_gap(self, case: Case, tmp_path: Path) -> None:
        script = """
            $fuse "$M" hang
            for roots in "$M" "$M/below"; do
                $guard --json --kinds process,file --roots "$roots" -- true; echo "exit $?"
            done
            for path in "$M" "$M/x.lock"; do
                $guard --json --kinds process,lockfile --lock-files "$path" -- true; echo "exit $?"
            done
            timeout -s KILL 90 leakcheck snapshot --roots "$1" --kinds file; echo "exit $?"
            timeout -s KILL 90 leakcheck doctor --roots "$M" >/dev/null; echo "exit $?"
        """
        outcome = self.bounded(case, tmp_path, script)
        assert exits(outcome) == [3, 3, 3, 3, 0, 0], outcome.text
        assert outcome.text.count("may hang") >= 5, outcome.text

    # Whatever reads the arguments of all processes of this machine waits as long as it runs: ps, psutil.
    @pytest.mark.slow
    def test_a_process_whose_memory_waits_for_one_is_leaked(self, case: Case, tmp_path: Path) -> None:
        shutil.copy(INPUTS / "fuse_lock.py", tmp_path)
        script = f"""
            $guard --kinds process --settle 0.1 -- python3 "$1/fuse_lock.py" "$1/file"; echo "exit $?"
            {sys.executable} -c 'import os
from leakcheck import _native
for name in filter(str.isdecimal, os.listdir("/proc")): _native.environment(int(name))'; echo "exit $?"
        """
        outcome = self.bounded(case, tmp_path, script)
        assert exits(outcome) == [1, 0] and outcome.text.count("process   orphaned") == 2, outcome.text

    def test_an_output_on_one_is_refused_before_the_command_runs(self, case: Case, tmp_path: Path) -> None:
        script = '$fuse "$M" hang; $guard -o "$M/report" -- touch "$1/ran"; echo "exit $?"'
        outcome = self.bounded(case, tmp_path, script)
        assert exits(outcome) == [2] and "does not respond" in outcome.text, outcome.text
        assert not (tmp_path / "ran").exists()

    def test_one_that_the_run_mounts_over_a_parent_is_a_leaked_mount(self, case: Case, tmp_path: Path) -> None:
        script = """
            mkdir -p "$M/root"; touch "$M/x.lock"
            $guard --roots "$M/root" --lock-files "$M/x.lock" -- $fuse "$M" hang; echo "exit $?"
        """
        outcome = self.bounded(case, tmp_path, script)
        assert exits(outcome) == [1] and "mount fuse" in outcome.text and "may hang" in outcome.text, outcome.text

    def test_no_path_leads_into_what_the_run_mounts_whatever_its_type(self, case: Case, tmp_path: Path) -> None:
        script = """
            mkdir -p "$M/root"
            $guard --json --roots "$M/root" -- sh -c 'mount -t tmpfs pbo "$0"; mkdir "$0/root"; touch "$0/root/1"' "$M"
            echo "exit $?"
        """
        outcome = self.bounded(case, tmp_path, script)
        assert exits(outcome) == [1] and "was mounted during the run" in outcome.text, outcome.text
        assert "root/1" not in re.sub(r'"command".*', "", outcome.text)

    def test_roots_in_another_mount_namespace_are_looked_at(self, case: Case, tmp_path: Path) -> None:
        script = """
            unshare -m sh -c 'mount -t tmpfs pbn /mnt; touch "$0/there"; exec sleep 30' "$M" & p=$!
            until [ -e "$M/there" ]; do sleep 0.02; done
            $guard --kinds file --roots "/proc/$p/root/mnt" -- touch "/proc/$p/root/mnt/1"; echo "exit $?"
        """
        outcome = self.bounded(case, tmp_path, script)
        assert exits(outcome) == [1] and "mnt/1 " in outcome.text, outcome.text

    @pytest.mark.parametrize("how", ["dead", "hang use"])
    def test_one_that_a_payload_lives_in_is_seen_without_it(self, case: Case, tmp_path: Path, how: str) -> None:
        script = f'$guard -- $fuse "$M" {how}; echo "exit $?"'
        outcome = self.bounded(case, tmp_path, script)
        assert exits(outcome) == [1] and "mount fuse" in outcome.text, outcome.text

    def test_an_arena_comes_up_beside_one(self, case: Case, tmp_path: Path) -> None:
        place = "/mnt/pb-hang"
        script = f"""
            mkdir -p {place}; $fuse {place} hang
            $guard --arena -- true; echo "exit $?"
        """
        try:
            outcome = self.bounded(case, tmp_path, script)
        finally:
            Path(place).rmdir()
        assert exits(outcome) == [0], outcome.text


def test_a_lock_that_the_run_leaves_in_a_file_which_it_was_given_is_leaked(case: Case, tmp_path: Path) -> None:
    # The shell has the file open, too: the lock lives on with it (flock(2)).
    script = f"exec 9>{tmp_path}/given; leakcheck guard --kinds lock -- flock -n 9; echo exit $?; flock -u 9"
    # Another pid namespace than the first one does not tell who took a lock and ended.
    left = 1 if Path("/proc/self/ns/pid").stat().st_ino == 0xEFFFFFFC else 3
    for lock, code in [("flock -n 9", left), ("sh -c 'flock -n 9; flock -u 9'", 0)]:
        outcome = case("sh", "-c", script.replace("flock -n 9", lock, 1))
        assert exits(outcome) == [code], outcome.text


def test_a_named_hierarchy_that_is_mounted_elsewhere_is_looked_at(case: Case, tmp_path: Path) -> None:
    script = """
        mounted="mount -t cgroup -o none,name=$CASE x /mnt"
        unshare -m --propagation private sh -c "$mounted; touch $0/up
            until [ -e $0/over ]; do sleep 0.02; done; rmdir /mnt/new" &
        until [ -e $0/up ]; do sleep 0.02; done
        leakcheck guard --kinds cgroup -- true; echo "exit $?"
        leakcheck guard --kinds cgroup -- unshare -m --propagation private sh -c "$mounted; mkdir /mnt/new"
        echo "exit $?"
        leakcheck guard --kinds cgroup -- true; echo "exit $?"
        touch $0/over; wait"""
    outcome = case("sh", "-c", script, str(tmp_path))
    idle, made, old = exits(outcome)
    new = [line for line in outcome.text.splitlines() if "in a hierarchy that is not mounted here" in line]
    # A neighbour's hierarchy may be as new, as this one is to a neighbour.
    assert made == 3 and sum(CASE in line for line in new) == 1, outcome.text
    assert {idle, old} <= ({0, 3} if len(new) > 1 else {0}), outcome.text


def test_the_cgroup_of_an_arena_goes_from_a_hierarchy_that_is_unmounted_meanwhile(case: Case) -> None:
    # A hierarchy stays in the kernel as long as it contains a cgroup, mounted or not (cgroups-v1 of the kernel).
    script = """
        mounted="mount -t cgroup -o none,name=$CASE x /mnt"
        $mounted
        leakcheck guard --arena -- sleep 1 & guard=$!
        until ls -d /mnt/leakcheck-arena-* 2>/dev/null; do sleep 0.02; done
        umount -l /mnt
        wait $guard
        for turn in $(seq 100); do grep -q "name=$CASE:" /proc/self/cgroup || break; sleep 0.02; done
        mount -t cgroup -o none,name=$CASE x /mnt; ls -d /mnt/leakcheck-* || echo gone; umount /mnt
    """
    outcome = case(*ALONE, "sh", "-c", script)
    assert "gone" in outcome.text.splitlines(), outcome.text
