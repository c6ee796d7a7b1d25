//! A caller of mkleak that never waits forever, and disposable namespaces to plant in.

#![allow(dead_code, reason = "each test program uses a part of this")]

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, PidfdFlags, Signal, getuid, pidfd_open, pidfd_send_signal};
use serde_json::Value;

/// Variable that marks the process in the disposable namespaces, with their directory.
const INSIDE: &str = "LEAKCHECK_MKLEAK_TEST_DIR";

/// A running mkleak. Killed and reaped when dropped.
pub(crate) struct Mkleak {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Mkleak {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mkleak"));
        command.args(arguments);
        Self::start_as(command)
    }

    pub(crate) fn start_as(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("mkleak starts");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Self { child, stdin, stdout }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn send(&mut self, text: &str) {
        // If mkleak has ended, the test fails by its output and not by a broken pipe here.
        let _ = self.stdin.as_mut().expect("stdin is open").write_all(text.as_bytes());
    }

    pub(crate) fn hang_up(&mut self) {
        self.stdin = None;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("mkleak is not reaped yet");
        pidfd_send_signal(&pidfd, signal).expect("signal");
    }

    /// The next line, or `None` at the end of the output.
    pub(crate) fn line(&mut self) -> Option<String> {
        if self.stdout.buffer().is_empty() {
            let mut ends = [PollFd::new(self.stdout.get_ref(), PollFlags::IN)];
            let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
            assert_eq!(poll(&mut ends, Some(&limit)), Ok(1), "mkleak says nothing for 10 s");
        }
        let mut line = String::new();
        match self.stdout.read_line(&mut line).expect("mkleak writes UTF-8") {
            0 => None,
            _ => Some(line.trim_end_matches('\n').to_owned()),
        }
    }

    /// The facts of the line that starts with this word; `None` if mkleak ended instead.
    pub(crate) fn facts(&mut self, word: &str) -> Option<Value> {
        let line = self.line()?;
        let facts = line.strip_prefix(word).unwrap_or_else(|| panic!("{word} expected, not {line:?}"));
        Some(serde_json::from_str(facts).unwrap_or_else(|error| panic!("{line:?}: {error}")))
    }

    /// Closes stdin, and returns the exit status and the text on stderr.
    pub(crate) fn end(&mut self) -> (ExitStatus, String) {
        self.hang_up();
        let mut complaint = String::new();
        let stderr = self.child.stderr.as_mut().expect("stderr is piped");
        stderr.read_to_string(&mut complaint).expect("stderr is UTF-8");
        (self.child.wait().expect("mkleak is ours"), complaint)
    }
}

impl Drop for Mkleak {
    fn drop(&mut self) {
        // A failing test must leave no processes: the end of stdin makes mkleak clean up.
        self.stdin = None;
        let _ = self.child.wait();
    }
}

/// A directory that is removed when this is dropped.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = env::temp_dir().join(format!("mkleak-test-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a directory for the test");
        Self(path)
    }

    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().expect("the name is ASCII")
    }

    pub(crate) fn entries(&self) -> Vec<PathBuf> {
        fs::read_dir(&self.0).expect("read_dir").map(|entry| entry.expect("entry").path()).collect()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs `body` in its own pid, mount, IPC and network namespaces, with fresh `/run` and `/dev/shm`: it starts this test
/// program again in them with only the named test. If not even a user namespace is allowed, it prints a note and runs
/// nothing, since orphans would stay on the host.
pub(crate) fn in_disposable_place(test: &str, body: impl FnOnce(&Path)) {
    if let Some(dir) = env::var_os(INSIDE) {
        let dir = PathBuf::from(dir);
        for target in [&dir, Path::new("/run"), Path::new("/dev/shm")] {
            mount("mkleak-test", target, "tmpfs", MountFlags::empty(), None).expect("mount tmpfs");
        }
        body(&dir);
        return;
    }
    if !unshare().arg("true").stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        println!("{test}: skipped: no namespaces may be made here");
        return;
    }
    let dir = Directory::new();
    // The shell is the init that reaps orphans; a test program as PID 1 would not.
    let status = unshare()
        .args(["sh", "-c", "\"$@\"; exit $?", "sh"])
        .arg(env::current_exe().expect("own path"))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, &dir.0)
        .stdin(Stdio::null())
        .status()
        .expect("unshare of util-linux");
    assert!(status.success(), "in the disposable place: {status}");
}

fn unshare() -> Command {
    let mut command = Command::new("unshare");
    if !getuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--pid", "--fork", "--mount-proc", "--mount", "--ipc", "--net", "--kill-child"]);
    command
}
