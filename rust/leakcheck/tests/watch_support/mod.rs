//! Programs that act on command, so that tests wait for events and never for time.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use leakcheck::snapshot::{Coverage, Level};

/// A shell that waits for [`Puppet::act`], runs its script, and ends.
pub(crate) struct Puppet(Child);

impl Puppet {
    pub(crate) fn new(script: &str) -> Puppet {
        let script = format!("read go; {script}");
        let child = Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        Puppet(child.expect("start sh"))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Lets it run its script to the end and be reaped.
    pub(crate) fn act(mut self) -> u32 {
        self.0.stdin.take().expect("its stdin").write_all(b"go\n").expect("tell it to go");
        assert!(self.0.wait().expect("wait for it").success());
        self.0.id()
    }
}

/// A `cat` that lives until this is dropped: orphaned by a double fork, in a session of its own, without an environment.
pub(crate) struct Orphan {
    pub(crate) pid: u32,
    _holds_it: ChildStdin,
}

/// What an orphan's maker runs; it prints the orphan's pid. The orphan reads what the maker has as FD 3.
const MAKE_ORPHAN: &str = "setsid env -i /bin/sh -c 'cat <&3 >/dev/null 2>&1 & echo $!' &";

impl Orphan {
    /// Made by a child that is started now.
    pub(crate) fn new() -> Orphan {
        OrphanMaker::new().act()
    }
}

/// A process that makes an [`Orphan`] when told to.
pub(crate) struct OrphanMaker {
    child: Child,
    go: ChildStdin,
}

impl OrphanMaker {
    pub(crate) fn new() -> OrphanMaker {
        // FD 3 carries the lifetime, the first line of the same pipe the command.
        let script = format!("exec 3<&0; read go; {MAKE_ORPHAN} wait");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).env("RUN_MARK", "1").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start sh");
        let go = child.stdin.take().expect("its stdin");
        OrphanMaker { child, go }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn act(mut self) -> Orphan {
        self.go.write_all(b"go\n").expect("tell it to go");
        let mut printed = String::new();
        let mut stdout = BufReader::new(self.child.stdout.take().expect("its stdout"));
        stdout.read_line(&mut printed).expect("the orphan's pid");
        // At its end nobody but the orphan is left: its ancestors had this pipe too.
        stdout.read_to_end(&mut Vec::new()).expect("the end of its ancestors");
        self.child.wait().expect("wait for the orphan's maker");
        Orphan { pid: printed.trim().parse().expect("a pid"), _holds_it: self.go }
    }
}

/// Fields 4 and 22 of `/proc/PID/stat`: parent and start time.
pub(crate) fn stat(pid: u32) -> (u32, u64) {
    let bytes = fs::read(format!("/proc/{pid}/stat")).expect("its stat");
    let stat = leakcheck::parse::stat::parse(&bytes).expect("a stat line");
    (stat.ppid as u32, stat.start_time)
}

/// This test binary, to run its test `role` as a process of its own.
pub(crate) fn role(name: &str) -> Vec<String> {
    let exe = std::env::current_exe().expect("our own path");
    let exe = exe.to_str().expect("UTF-8").to_owned();
    [exe.as_str(), "--exact", name, "--nocapture", "--ignored", "--test-threads=1"].map(str::to_owned).into()
}

/// A directory on the filesystem of `parent` that goes with this.
pub(crate) fn scratch(parent: &str) -> tempfile::TempDir {
    tempfile::Builder::new().prefix("leakcheck-test-").tempdir_in(parent).expect("a scratch directory")
}

/// Whether a source is there in full; prints why the test does nothing otherwise.
pub(crate) fn available(coverage: &Coverage) -> bool {
    if coverage.level != Level::Full {
        eprintln!("skipped: {}", coverage.reason);
    }
    coverage.level == Level::Full
}

/// Directory of our own cgroup in the v2 hierarchy and in one v1 hierarchy, as far as they are mounted and writable.
pub(crate) fn own_cgroups() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let own = fs::read_to_string("/proc/self/cgroup").expect("own cgroups");
    let mount_point = |what: &str| {
        let line = mounts.lines().find(|l| l.split(" - ").nth(1).is_some_and(|end| end.starts_with(what)))?;
        line.split(' ').nth(4).map(PathBuf::from)
    };
    let path =
        |prefix: &str| own.lines().find_map(|l| l.split_once(prefix).map(|(_, p)| p.trim_matches('/').to_owned()));
    let v2 = mount_point("cgroup2 ").zip(path("0::"));
    let v1 = mount_point("cgroup cgroup rw,pids").zip(path(":pids:"));
    [v2, v1].into_iter().flatten().map(|(mount, path)| mount.join(path)).filter(|p| p.is_dir()).collect()
}

/// A cgroup that is removed with this, with what was made directly below it.
pub(crate) struct TestCgroup(pub(crate) PathBuf);

impl TestCgroup {
    pub(crate) fn below(parent: &Path) -> TestCgroup {
        let path = parent.join(format!("leakcheck-test-{}", std::process::id()));
        fs::create_dir(&path).expect("make a cgroup below our own");
        TestCgroup(path)
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        for name in ["run", "noise"] {
            let _ = fs::remove_dir(self.0.join(name));
        }
        fs::remove_dir(&self.0).expect("remove our cgroup");
    }
}
