//! A real arena, made by the warden, and commands that run in it.
#![allow(dead_code, reason = "each program uses some of it")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use leakcheck::guard::{self, Guard};
use leakcheck::judge::diff::diff;
use leakcheck::judge::settle::Policy;
use leakcheck::resource::Resource;
use leakcheck::{ArenaView, Kind, KindSet, Layer, ObservedArena, Report, Snapshot, observe};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde_json::{Value, json};

pub(crate) struct Arena {
    pub(crate) observed: Arc<ObservedArena>,
    commands: Option<OwnedFd>,
    socket: Option<OwnedFd>,
    id: u64,
    warden: Child,
}

/// Kinds of which others on the machine may make some.
const SHARED: [Kind; 3] = [Kind::Loop, Kind::Key, Kind::Bpf];

/// A command that was started in an arena.
pub(crate) struct Running {
    _pidfd: OwnedFd,
    status: File,
    input: File,
    output: BufReader<File>,
}

impl Arena {
    /// None, and a word of why, where arenas cannot be made.
    pub(crate) fn up() -> Option<Arena> {
        Arena::with(json!({}))
    }

    pub(crate) fn with(options: Value) -> Option<Arena> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        Some(Arena::made(options).unwrap_or_else(|why| panic!("no arena: {why}")))
    }

    /// With a program in it, which an arena hides where the checkout lies below `/tmp`.
    pub(crate) fn showing(program: &Path, mut options: Value) -> Option<Arena> {
        options["binds"] = json!([[program, program, true]]);
        Arena::with(options)
    }

    /// The warden's own words where it makes none.
    pub(crate) fn made(options: Value) -> Result<Arena, String> {
        let (socket, theirs) = pair();
        let mut warden = Command::new(binary("leakcheck-warden", "warden"))
            .arg(std::process::id().to_string())
            .stdin(Stdio::from(theirs))
            .spawn()
            .expect("the warden starts");
        let (commands, inside) = pair();
        send(&socket, &json!({"op": "up", "options": options}), &[inside.as_fd()]);
        drop(inside);
        let (answer, fds) = receive(&socket);
        let Some(up) = answer.get("up") else {
            drop(socket);
            let _ = warden.wait();
            return Err(answer["error"].as_str().map_or_else(|| answer.to_string(), str::to_owned));
        };
        let mut fds = fds.into_iter().skip(1);
        let (proc, upper) = (fds.next().unwrap(), fds.next().unwrap());
        let strings = |v: &Value| -> Vec<String> {
            v.as_array().unwrap().iter().map(|s| s.as_str().unwrap().to_owned()).collect()
        };
        let roots = strings(&up["roots"]).into_iter().map(PathBuf::from).zip(fds).collect();
        let cgroups = up["cgroups"].as_array().unwrap().iter().map(strings);
        let cgroups = cgroups.map(|pair| (pair[0].clone(), PathBuf::from(&pair[1]))).collect();
        let layers = vec![Layer { path: "/".into(), upper, lower: "/".into() }];
        let view = ArenaView { proc, layers, roots, cgroups, not_covered: strings(&up["not_covered"]) };
        let observed = ObservedArena::new(view).unwrap();
        let id = up["id"].as_u64().unwrap();
        Ok(Arena { observed: Arc::new(observed), commands: Some(commands), socket: Some(socket), id, warden })
    }

    /// SIGKILL for its warden, and with it for all that runs inside; cgroup directories are left.
    pub(crate) fn kill_warden(mut self) {
        self.warden.kill().unwrap();
        self.warden.wait().unwrap();
        self.socket = None;
    }

    pub(crate) fn options(&self, kinds: &[Kind]) -> observe::Options {
        let kinds: KindSet = kinds.iter().copied().collect();
        let kinds = (kinds != KindSet::EMPTY).then_some(kinds);
        observe::Options { kinds, arena: Some(Arc::clone(&self.observed)), ..observe::Options::default() }
    }

    /// Of every kind when none is named.
    pub(crate) fn snapshot(&self, kinds: &[Kind]) -> Snapshot {
        observe::snapshot(&self.options(kinds)).unwrap()
    }

    pub(crate) fn guard(&self, kinds: &[Kind]) -> Guard {
        let policy = Policy::new(Duration::from_millis(60));
        Guard::begin(guard::Options { observe: self.options(kinds), policy, ..guard::Options::default() }).unwrap()
    }

    /// Runs a shell script to its end under a guard.
    pub(crate) fn guarded(&self, kinds: &[Kind], script: &str) -> Report {
        let mut guard = self.guard(kinds);
        self.sh(script);
        guard.end(None).unwrap()
    }

    /// Starts a program.
    pub(crate) fn start(&self, argv: &[&str]) -> Running {
        let (status, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (output, out) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (stdin, input) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let stderr = std::io::stderr();
        let commands = self.commands.as_ref().unwrap();
        let strings = rustix::fs::memfd_create("strings", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        for string in std::iter::once(&"/").chain(argv).chain(&["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]) {
            rustix::io::write(&strings, format!("{string}\0").as_bytes()).unwrap();
        }
        rustix::fs::seek(&strings, rustix::fs::SeekFrom::Start(0)).unwrap();
        let fds = [stdin.as_fd(), out.as_fd(), stderr.as_fd(), theirs.as_fd(), strings.as_fd()];
        send(commands, &json!({"argc": argv.len()}), &fds);
        let (answer, mut fds) = receive(commands);
        assert!(answer.get("pid").is_some(), "{argv:?}: {answer}");
        let output = BufReader::new(output.into());
        Running { _pidfd: fds.pop().unwrap(), status: status.into(), input: input.into(), output }
    }

    /// Runs a shell script, which must succeed; its descendants may live on.
    pub(crate) fn sh(&self, script: &str) {
        let status = self.start(&["/bin/sh", "-c", script]).wait();
        assert_eq!(status, 0, "{script}");
    }

    /// Runs one of mkleak's plants with a baseline before it, and says what is wrong; none when it cannot exist here.
    pub(crate) fn plant(&self, program: &str, name: &str, kind: Kind) -> Option<Result<(), String>> {
        let dir = if kind == Kind::File { "/var/lib" } else { "/tmp" };
        let mut mkleak = self.start(&[program, name, "--dir", dir, "--hold"]);
        mkleak.line()?;
        // Looking into a declared lock file breaks a lease on it, and that ends the plant (fcntl(2), SIGIO).
        let lock_files = if kind == Kind::Lockfile { vec!["/tmp".into()] } else { Vec::new() };
        // A look at an arena has the machine's settings only where they are named.
        let named: &[Kind] = if kind == Kind::Sysctl { &[kind] } else { &[] };
        let options = observe::Options { lock_files, ..self.options(named) };
        let observation = || observe::snapshot(&options).unwrap();
        let before = observation();
        // One look may miss what lives on in ever new processes; the end of a guard may not.
        let mut guard = name.starts_with("respawning").then(|| self.guard(&[kind]));
        mkleak.go();
        let Some(facts) = mkleak.line() else {
            eprintln!("{name} cannot exist here");
            return None;
        };
        let appeared = diff(&before, &observation()).unwrap().appeared;
        let kinds: BTreeSet<Kind> = appeared.iter().map(Resource::kind).collect();
        // A deleted file that is only mapped is no descriptor.
        let wanted = if name == "mmap-deleted" { Kind::File } else { kind };
        let told = |guard: &mut Guard| guard.end(None).unwrap().leaks.iter().any(|leak| leak.kind == kind);
        let found = guard.as_mut().map_or_else(|| kinds.contains(&wanted), told);
        mkleak.go();
        let cleaned = mkleak.line();
        let began = Instant::now();
        let mut left;
        loop {
            left = diff(&before, &observation()).unwrap().appeared;
            left.retain(|r| !SHARED.contains(&r.kind()) || r.kind() == kind);
            if left.is_empty() || began.elapsed() > Duration::from_secs(60) {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        mkleak.go();
        let status = mkleak.wait();
        if cleaned.is_none() {
            return Some(Err(format!("{name}: ended before it cleaned: wait status {status:#x}")));
        }
        Some(match (found, left.is_empty()) {
            (false, _) => Err(format!("{name}: not found: {facts}; appeared: {kinds:?}")),
            (true, false) => Err(format!("{name}: left after it was cleaned: {left:?}")),
            (true, true) => Ok(()),
        })
    }
}

impl Running {
    /// The wait status.
    pub(crate) fn wait(mut self) -> i32 {
        drop(self.input);
        let mut status = [0; 4];
        self.status.read_exact(&mut status).expect("the spawner tells how it ended");
        i32::from_ne_bytes(status)
    }

    /// Waits for a line; none when it has ended.
    pub(crate) fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        (self.output.read_line(&mut line).unwrap() > 0).then_some(line)
    }

    /// Writes an empty line.
    pub(crate) fn go(&mut self) {
        let _ = self.input.write_all(b"\n");
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if let Some(socket) = self.socket.take() {
            send(&socket, &json!({"op": "down", "id": self.id}), &[]);
            let (answer, _) = receive(&socket);
            if !std::thread::panicking() {
                assert_eq!(answer, json!("done"));
            }
        }
        self.commands = None;
        let _ = self.warden.wait();
    }
}

/// A program of this workspace, built when it is not there or is older than its sources.
pub(crate) fn binary(package: &str, name: &str) -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let program = std::env::current_exe().unwrap().parent().unwrap().with_file_name(name);
    // Without cargo there is what was put there. A build of one package alone would compile all that it depends on again
    // with other features, which takes a minute.
    if let Some(cargo) = std::env::var_os("CARGO")
        && !is_newer_than_its_sources(&program).unwrap_or(false)
    {
        let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
        let build = Command::new(cargo).args(["build", "--quiet", "--profile", profile, "-p", package]).status();
        assert!(build.unwrap().success());
    }
    program
}

/// No program depends on this crate or the binding of Python.
fn is_newer_than_its_sources(program: &Path) -> std::io::Result<bool> {
    let built = fs::metadata(program)?.modified()?;
    let rust = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut paths = vec![rust.join("../Cargo.lock"), rust.join("../Cargo.toml")];
    for one in ["mkleak", "parse", "plan", "refbox", "stack", "sys", "warden"] {
        paths.extend([rust.join(one).join("Cargo.toml"), rust.join(one).join("src")]);
    }
    while let Some(path) = paths.pop() {
        let metadata = fs::metadata(&path)?;
        if metadata.modified()? > built {
            return Ok(false);
        }
        if metadata.is_dir() {
            for entry in fs::read_dir(&path)? {
                paths.push(entry?.path());
            }
        }
    }
    Ok(true)
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

fn send(socket: &OwnedFd, message: &Value, fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    sendmsg(socket, &[IoSlice::new(message.to_string().as_bytes())], &mut control, SendFlags::NOSIGNAL).unwrap();
}

fn receive(socket: &OwnedFd) -> (Value, Vec<OwnedFd>) {
    let mut text = vec![0u8; 1 << 16];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let n = recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap().bytes;
    assert!(n > 0, "the warden ended");
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    (serde_json::from_slice(&text[..n]).unwrap(), fds)
}
