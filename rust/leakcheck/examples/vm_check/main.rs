//! Checks leakcheck on the machine that it is run on, as root: every plant of `mkleak` must be found and be gone again, and a
//! few real runs must be judged right, on the host and in arenas. For a bare virtual machine with another kernel than the
//! developer's (`tests/vm`).
//!
//! `vm_check MKLEAK` prints a line for each check (`ok`, `FAIL` or `skip`, its name, and why), and at last
//! `N passed, N failed, N skipped`. `vm_check --arena` prints only whether the warden, which lies beside it, makes an arena.

mod arenas;

use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use leakcheck::guard::{self, Guard, verify_none};
use leakcheck::judge::allow::Rules;
use leakcheck::judge::settle::Policy;
use leakcheck::snapshot::Level;
use leakcheck::{Kind, Report, Verdict, observe};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

type Failure = Box<dyn std::error::Error>;

/// How a check ended; a failure is an error.
enum Done {
    Ok(String),
    Skipped(String),
}

#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Tally {
    fn note(&mut self, name: &str, result: Result<Done, Failure>) {
        let (word, why) = match result {
            Ok(Done::Ok(what)) => (self.count("ok"), what),
            Ok(Done::Skipped(why)) => (self.count("skip"), why),
            Err(why) => (self.count("FAIL"), why.to_string()),
        };
        println!("{word:4} {name}: {}", why.replace('\n', " "));
    }

    fn count(&mut self, word: &'static str) -> &'static str {
        match word {
            "ok" => self.passed += 1,
            "skip" => self.skipped += 1,
            _ => self.failed += 1,
        }
        word
    }
}

fn main() -> Result<(), Failure> {
    let mkleak = std::env::args_os().nth(1).map(PathBuf::from).ok_or("usage: vm_check MKLEAK | --arena")?;
    if mkleak.as_os_str() == "--arena" {
        println!("arena: {}", arenas::whether());
        return Ok(());
    }
    let listed = Command::new(&mkleak).args(["--list", "--json"]).output()?;
    let plants: Vec<Value> = serde_json::from_slice(&listed.stdout)?;
    let mut tally = Tally::default();
    for plant in &plants {
        let (name, kind) = (text(plant, "name"), text(plant, "kind"));
        tally.note(name, found_and_gone_again(&mkleak, name, kind.parse()?));
    }
    for (name, check) in RUNS {
        tally.note(name, check());
    }
    arenas::check(&mkleak, &plants, &mut tally);
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skipped);
    Ok(())
}

fn text<'a>(of: &'a Value, field: &str) -> &'a str {
    of[field].as_str().unwrap_or_default()
}

/// A running `mkleak NAME --hold`. Closing its stdin lets it clean up and end.
struct Mkleak {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Mkleak {
    fn start(program: &Path, name: &str, dir: &Path) -> io::Result<Self> {
        let mut child = Command::new(program)
            .args([name, "--hold", "--dir"])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("mkleak has no pipes"));
        };
        Ok(Mkleak { child, stdin, stdout: BufReader::new(stdout) })
    }

    /// The facts behind the awaited word; none when mkleak ended instead.
    fn expect(&mut self, word: &str) -> Result<Option<Value>, Failure> {
        let mut line = String::new();
        wait_for(self.stdout.get_ref())?;
        self.stdout.read_line(&mut line)?;
        let Some(facts) = line.trim_end().strip_prefix(word) else {
            return if line.is_empty() { Ok(None) } else { Err(format!("{word} expected, not {line:?}").into()) };
        };
        Ok(Some(serde_json::from_str(facts).unwrap_or(Value::Null)))
    }

    fn go_on(&mut self) -> io::Result<()> {
        self.stdin.write_all(b"\n")
    }

    fn end(mut self) -> Result<Done, Failure> {
        drop(self.stdin);
        let status = self.child.wait()?;
        let mut why = String::new();
        if let Some(stderr) = self.child.stderr.take() {
            BufReader::new(stderr).read_line(&mut why)?;
        }
        match status.code() {
            Some(77) => Ok(Done::Skipped(why.trim_end().to_owned())),
            _ => Err(format!("mkleak ended with {status}: {}", why.trim_end()).into()),
        }
    }
}

fn wait_for(output: &ChildStdout) -> Result<(), Failure> {
    let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
    match poll(&mut [PollFd::new(output, PollFlags::IN)], Some(&patience))? {
        0 => Err("nothing said for a minute".into()),
        _ => Ok(()),
    }
}

fn options(lock_files: Vec<PathBuf>) -> guard::Options {
    guard::Options {
        observe: observe::Options { lock_files, ..observe::Options::default() },
        policy: Policy::new(Duration::from_millis(500)),
        ..guard::Options::default()
    }
}

fn found_and_gone_again(program: &Path, name: &str, kind: Kind) -> Result<Done, Failure> {
    // Of its own, so that the other plants' files are not taken for lock files.
    let locks = Path::new("/run/lock-files");
    std::fs::create_dir_all(locks)?;
    let (dir, lock_files) = match kind {
        Kind::Lockfile => (locks, vec![locks.to_owned()]),
        _ => (Path::new("/tmp"), Vec::new()),
    };
    let options = options(lock_files);
    let mut mkleak = Mkleak::start(program, name, dir)?;
    if mkleak.expect("WAITING")?.is_none() {
        return mkleak.end();
    }
    let before = observe::snapshot(&options.observe)?;
    mkleak.go_on()?;
    let Some(facts) = mkleak.expect("READY")? else { return mkleak.end() };
    // Two snapshots may both miss what never stays (docs/explanation/undetected.md): several looks do not.
    let report = if name.starts_with("respawning") {
        verify_none(&before, &before, &options)?
    } else {
        guard::compare(&before, &observe::snapshot(&options.observe)?, &Rules::default(), None)?
    };
    mkleak.go_on()?;
    mkleak.expect("CLEAN")?;
    let settled = verify_none(&before, &before, &options)?;
    mkleak.go_on()?;
    drop(mkleak.stdin);
    mkleak.child.wait()?;
    // A deleted file that is mapped is of the kind file.
    let kind = if name == "mmap-deleted" { Kind::File } else { kind };
    let found = report.leaks.iter().find(|leak| leak.kind == kind && mentions(&leak.evidence["resource"], &facts));
    match found {
        None => Err(format!("not found, but {} ({}): {facts}", labels(&report), gaps(&report)).into()),
        Some(_) if !settled.leaks.is_empty() => Err(format!("not gone again: {}", labels(&settled)).into()),
        Some(leak) => Ok(Done::Ok(leak.label.clone())),
    }
}

/// Whether any of the numbers and names that identify the plant are in the record.
fn mentions(resource: &Value, facts: &Value) -> bool {
    const IDENTIFYING: [&str; 12] =
        ["pid", "comm", "ino", "id", "serial", "ifindex", "map_id", "prog_id", "socket_ino", "name", "path", "device"];
    let record = resource.to_string();
    let words: Vec<&str> = record.split(|c: char| !c.is_alphanumeric() && !"/-_.".contains(c)).collect();
    IDENTIFYING.iter().filter_map(|field| facts.get(field)).any(|fact| match fact {
        Value::String(name) => record.contains(name.as_str()) || words.iter().any(|w| name.ends_with(&format!("/{w}"))),
        number => words.contains(&number.to_string().as_str()),
    })
}

fn labels(report: &Report) -> String {
    report
        .leaks
        .iter()
        .map(|l| format!("{} ({}, by {})", l.label, l.kind, l.attribution))
        .collect::<Vec<_>>()
        .join("; ")
}

fn gaps(report: &Report) -> String {
    let lowered = report.coverage.0.iter().filter(|(_, c)| c.level != Level::Full);
    let told: Vec<String> = lowered.map(|(kind, c)| format!("{kind} {:?}: {}", c.level, c.reason)).collect();
    if told.is_empty() { "no gap is told".to_owned() } else { told.join("; ") }
}

type Check = fn() -> Result<Done, Failure>;
const RUNS: [(&str, Check); 5] = [
    ("guard-of-a-clean-run", clean_run),
    ("guard-of-an-orphan", orphan),
    ("guard-of-a-cgroup-left", cgroup_left),
    ("guard-of-a-mount-left", mount_left),
    ("guard-of-a-killed-supervisor", killed_supervisor),
];

fn clean_run() -> Result<Done, Failure> {
    let mut guard = Guard::begin(options(Vec::new()))?;
    Command::new("/bin/true").status()?;
    let report = guard.end(None)?;
    match report.verdict {
        Verdict::Clean => Ok(Done::Ok("clean".to_owned())),
        Verdict::Leaked => Err(labels(&report).into()),
        Verdict::Unknown => Err(gaps(&report).into()),
    }
}

/// Guards a shell script, which says `READY` when its work is done, and is killed then if `kill` is set.
fn guarded(script: &str, kill: bool) -> Result<Report, Failure> {
    let mut guard = Guard::begin(options(Vec::new()))?;
    let (name, token) = guard.token();
    let mut shell = Command::new("/bin/sh")
        .args(["-c", script])
        .env(name, token)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    if let Some(output) = shell.stdout.take() {
        wait_for(&output)?;
        BufReader::new(output).read_line(&mut said)?;
    }
    if said.trim_end() != "READY" {
        return Err(format!("the script said {said:?}").into());
    }
    if kill {
        shell.kill()?;
    }
    shell.wait()?;
    Ok(guard.end(None)?)
}

/// Ends the processes that a report names, so that the next check begins clean.
fn end_processes(report: &Report) -> Result<(), Failure> {
    for leak in report.leaks.iter().filter(|l| l.kind == Kind::Process) {
        let pid = leak.evidence["resource"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.filter(|pid| *pid > 1).and_then(Pid::from_raw).ok_or("a leaked process without a pid")?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        pidfd_send_signal(&process, Signal::KILL)?;
        poll(&mut [PollFd::new(&process, PollFlags::IN)], None)?;
    }
    Ok(())
}

fn wants(report: &Report, kinds: &[Kind]) -> Result<Done, Failure> {
    let missing: Vec<&str> =
        kinds.iter().filter(|k| !report.leaks.iter().any(|l| l.kind == **k)).map(|k| k.as_str()).collect();
    if missing.is_empty() {
        Ok(Done::Ok(labels(report)))
    } else {
        Err(format!("no {missing:?} in: {}", labels(report)).into())
    }
}

fn orphan() -> Result<Done, Failure> {
    let report = guarded("(setsid sleep 1000 <&- >&- 2>&- &) ; echo READY", false)?;
    end_processes(&report)?;
    wants(&report, &[Kind::Process])
}

fn cgroup_left() -> Result<Done, Failure> {
    let report = guarded("mkdir /sys/fs/cgroup/left && echo READY", false)?;
    std::fs::remove_dir("/sys/fs/cgroup/left")?;
    wants(&report, &[Kind::Cgroup])
}

fn mount_left() -> Result<Done, Failure> {
    let report = guarded("mkdir -p /mnt && mount -t tmpfs left /mnt && echo READY", false)?;
    rustix::mount::unmount("/mnt", rustix::mount::UnmountFlags::empty())?;
    wants(&report, &[Kind::Mount])
}

fn killed_supervisor() -> Result<Done, Failure> {
    let script = "mkdir /sys/fs/cgroup/box && echo box > /run/box.state
        (echo 0 > /sys/fs/cgroup/box/cgroup.procs && exec sleep 1000 <&- >&- 2>&-) &
        until grep -q . /sys/fs/cgroup/box/cgroup.procs; do :; done
        echo READY; wait";
    let report = guarded(script, true)?;
    end_processes(&report)?;
    std::fs::remove_file("/run/box.state")?;
    let removed = (0..100).any(|_| {
        let gone = std::fs::remove_dir("/sys/fs/cgroup/box").is_ok();
        // The zombie is in it until init has collected it.
        if !gone {
            std::thread::sleep(Duration::from_millis(20));
        }
        gone
    });
    if !removed {
        return Err("cannot remove /sys/fs/cgroup/box".into());
    }
    wants(&report, &[Kind::Process, Kind::Cgroup, Kind::File])
}
