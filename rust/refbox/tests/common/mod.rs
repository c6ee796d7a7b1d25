//! A test's own state directory, and the refbox that uses it.
#![allow(dead_code, reason = "each test file uses another part")]

pub(crate) mod calls;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use leakcheck::Kind;
use serde_json::Value;

pub(crate) const REFBOX: &str = env!("CARGO_BIN_EXE_refbox");
/// Long enough for a machine under any load, short enough to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether tests that need root can run; prints a note if they can't.
pub(crate) fn root() -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if !root {
        eprintln!("skipped: only root can run this test");
    }
    root
}

/// Fails the test if boxes leave anything on the machine, zombies included. To be dropped after the place.
pub(crate) fn guard() -> leakcheck::NoLeaks {
    let kinds = [
        Kind::Process,
        Kind::Fd,
        Kind::Mount,
        Kind::Cgroup,
        Kind::Lock,
        Kind::File,
        Kind::Ipc,
        Kind::Namespace,
        Kind::Net,
    ];
    leakcheck::testing::Options::default().kinds(kinds).guard()
}

/// A directory that is removed when this value is dropped.
pub(crate) struct Place {
    pub(crate) dir: PathBuf,
}

/// The outcome of a run.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) result: Value,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn status(&self) -> &str {
        self.result["status"].as_str().unwrap_or("no status")
    }

    /// For a failed assertion.
    pub(crate) fn all(&self) -> String {
        format!("exit {}, {}\nstdout: {}\nstderr: {}", self.code, self.result, self.stdout, self.stderr)
    }
}

impl Place {
    pub(crate) fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("refbox-test-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Place { dir: dir.canonicalize().unwrap() }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.dir.join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(REFBOX);
        command.args(arguments).env("REFBOX_STATE", self.state()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn refbox(&self, arguments: &[&str]) -> Output {
        finish(self.command(arguments).spawn().unwrap())
    }

    pub(crate) fn run_command(&self, number: u16, arguments: &[&str]) -> Command {
        let result = self.result_path(number);
        let mut command = self.command(&["run", "--box", &number.to_string(), "--result", result.to_str().unwrap()]);
        command.args(arguments);
        command
    }

    pub(crate) fn result_path(&self, number: u16) -> PathBuf {
        self.dir.join(format!("result-{number}.json"))
    }

    /// `refbox run` in box `number` with more arguments.
    pub(crate) fn run(&self, number: u16, arguments: &[&str]) -> Ran {
        let _ = fs::remove_file(self.result_path(number));
        self.ran(number, finish(self.run_command(number, arguments).spawn().unwrap()))
    }

    pub(crate) fn ran(&self, number: u16, output: Output) -> Ran {
        let text = fs::read(self.result_path(number)).unwrap_or_default();
        Ran {
            code: output.status.code().unwrap_or(-1),
            result: serde_json::from_slice(&text).unwrap_or(Value::Null),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub(crate) fn state_file(&self, number: u16) -> PathBuf {
        self.state().join(format!("box-{number}.json"))
    }

    /// The name of this state directory's cgroups, without the box number.
    pub(crate) fn cgroup_prefix(&self) -> String {
        format!("refbox-{:08x}-", fnv(self.state().to_str().unwrap()) as u32)
    }

    /// The cgroups of this place's boxes, wherever they are.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let prefix = self.cgroup_prefix();
        let (mut found, mut rest) = (Vec::new(), vec![PathBuf::from("/sys/fs/cgroup")]);
        while let Some(dir) = rest.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with(&prefix) {
                    found.push(entry.path());
                } else if entry.file_type().is_ok_and(|class| class.is_dir()) {
                    rest.push(entry.path());
                }
            }
        }
        found
    }

    /// The processes that have `word` in their command line, except this test's own.
    pub(crate) fn processes(word: &str) -> Vec<String> {
        let own = std::process::id().to_string();
        let entries = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().into_string().ok());
        let numbers = entries.filter(|name| name.bytes().all(|b| b.is_ascii_digit()) && *name != own);
        let line = |pid: String| Some((fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?, pid));
        numbers.filter_map(line).filter(|(line, _)| line.contains(word)).map(|(_, pid)| pid).collect()
    }

    /// Fails if boxes left anything: a cgroup, a process, a state.
    pub(crate) fn assert_nothing_left(&self, context: &str) {
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new(), "{context}");
        let until = Instant::now() + PATIENCE;
        // Process 1 of a box is dead, but its new parent may not have reaped it yet.
        while !Self::processes(self.dir.to_str().unwrap()).is_empty() {
            assert!(Instant::now() < until, "{context}: {:?}", Self::processes(self.dir.to_str().unwrap()));
            std::thread::sleep(Duration::from_millis(2));
        }
        let names = fs::read_dir(self.state()).into_iter().flatten().flatten().map(|e| e.file_name());
        for name in names.map(|name| name.into_string().unwrap()) {
            let known = name.ends_with(".lock") || ["audit.jsonl", "quarantine"].contains(&name.as_str());
            assert!(known, "{context}: {name} is left in the state directory");
        }
    }

    pub(crate) fn audit(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.state().join("audit.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub(crate) fn health(&self) -> (i32, Value) {
        let output = self.refbox(&["health"]);
        (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap())
    }

    /// A payload that runs until it is released.
    pub(crate) fn held(&self, number: u16, more: &[&str]) -> Held {
        let fifo = self.dir.join(format!("fifo-{number}"));
        let _ = fs::remove_file(&fifo);
        let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        let mut arguments = vec!["--stdin", fifo.to_str().unwrap()];
        arguments.extend(more);
        arguments.extend(["--", "/bin/cat"]);
        let mut child = self.run_command(number, &arguments).spawn().unwrap();
        let mut feed = fs::OpenOptions::new().write(true).open(&fifo).unwrap();
        feed.write_all(b"runs\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "runs\n");
        Held { feed, child }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.refbox(&["recover"]);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A run whose payload waits.
pub(crate) struct Held {
    feed: fs::File,
    pub(crate) child: Child,
}

impl Held {
    pub(crate) fn let_go(self, place: &Place, number: u16) -> Ran {
        drop(self.feed);
        place.ran(number, finish(self.child))
    }

    /// Waits for the end of the supervisor while the payload still waits.
    pub(crate) fn ended(self, place: &Place, number: u16) -> Ran {
        place.ran(number, finish(self.child))
    }
}

/// Waits for a command, with a time limit.
pub(crate) fn finish(child: Child) -> Output {
    let pid = child.id();
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if ended.recv_timeout(PATIENCE).is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout) {
            eprintln!("process {pid} runs for over {PATIENCE:?}");
            std::process::abort();
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(done);
    watch.join().unwrap();
    output
}

pub(crate) fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Numbers below `bound` that are the same in every run (xorshift).
pub(crate) fn random(seed: &mut u64, bound: u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed % bound
}

pub(crate) fn exists(path: &str) -> bool {
    Path::new(path).exists()
}
