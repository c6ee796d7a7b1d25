//! The tracer of an arena's commands: it names the instants of a run at which something outside changes, the crash points,
//! and kills at one of them.
//!
//! It lives in the spawner, which is single-threaded and the parent of the commands. A traced process stays traced until the
//! arena is down: its filter lets points fail without a tracer (seccomp(2)). After the fault it only passes on what stops.

mod decode;
mod fault;
mod files;
mod filter;
mod hold;
mod kill;
mod notify;
mod object;
mod parting;
mod points;
mod record;
mod request;
mod role;
mod stack;
mod status;
mod x86_64;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use leakcheck_sys::Ended;
use leakcheck_sys::trace::{self, Call, Change, Resume, Stop};

use fault::Delayed;
use files::{Files, Look};
pub(crate) use filter::{install, report};
use hold::Waiting;
use kill::Held;
use notify::Reported;
use parting::Parting;
pub(crate) use points::set_root;
use points::{Flags, Point, describe, executes};
use record::Pending;
pub(crate) use request::Request;
use request::Victim;
use role::Role;
use status::filters;
use x86_64::{hides, is_i386};

/// Roles of an arena; further processes have the role of their creator.
const MOST_ROLES: usize = 10_000;
/// The operation of a fault that happens as soon as the payload has been executed.
const PAYLOAD: &str = "payload";
/// Interval at which the tracer looks whether all others block.
const TICK: Duration = Duration::from_millis(1);
/// Time limit for that; then the kill happens all the same.
const PATIENCE: Duration = Duration::from_secs(2);

/// The part of the run's life in which a point is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Setup,
    Execution,
    Timeout,
    Cleanup,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Phase::Setup => "setup",
            Phase::Execution => "execution",
            Phase::Timeout => "timeout",
            Phase::Cleanup => "cleanup",
        }
    }
}

/// A traced command with everything that it started.
struct Run {
    request: Request,
    /// What is known of it, one JSON object a line.
    log: File,
    began: Instant,
    phase: Phase,
    root: i32,
    payload: Option<i32>,
    /// Whether the kill happened.
    fired: bool,
    /// Whom SIGKILL was sent to, and when (`status::now`), once it was.
    swept: Option<(Victim, u64)>,
    /// The faults of calls that happened.
    injected: Vec<usize>,
    /// Whether the stack at the first of all faults was recorded.
    stacked: bool,
    points: u32,
    /// What its filter reports to, if it does.
    listener: Option<OwnedFd>,
    /// Each byte that it has lets the command go on from where it waits.
    release: Option<OwnedFd>,
    /// The thread whose call was reported last.
    reporting: i32,
    /// A process that may have executed its program, and its command line before.
    executing: Option<(i32, Vec<u8>)>,
    /// The files that are watched, as they were last seen.
    files: Files,
}

impl Run {
    fn note(&mut self, line: &serde_json::Value) {
        let _ = writeln!(self.log, "{line}");
    }
}

/// A traced thread.
struct Task {
    role: usize,
    process: i32,
    /// Whether it is about to execute the payload.
    payload: bool,
    /// Whether the kill is due when its current call has returned.
    due: bool,
    /// What is to be recorded of its current call.
    pending: Option<Pending>,
    /// What its current call may change in the files that are watched.
    look: Option<Look>,
    /// What its current call returns, if that is decided.
    result: Option<i64>,
    /// What stood where the call writes what that result does not tell.
    before: Vec<(u64, u64)>,
}

impl Task {
    fn new(role: usize, process: i32) -> Self {
        Task { role, process, payload: false, due: false, pending: None, look: None, result: None, before: Vec::new() }
    }
}

/// All traced commands of an arena.
#[derive(Default)]
pub(crate) struct Tracer {
    tasks: HashMap<i32, Task>,
    /// Stopped threads whose creator has not reported them yet.
    early: HashMap<i32, Instant>,
    roles: Vec<Role>,
    runs: Vec<Run>,
    held: Option<Held>,
    delayed: Vec<Delayed>,
    waiting: Vec<Waiting>,
    parting: Vec<Parting>,
    reported: Reported,
    /// Threads that have called exit(2) or exit_group(2), or another one of their process has called the latter.
    leaving: HashSet<i32>,
}

impl Tracer {
    /// Starts to trace a command that has not executed its program, or to answer what its filter reports to `listener`; what
    /// is known of it is written to `log`. Where it waits, it goes on at each byte in `release`.
    pub(crate) fn seize(
        &mut self,
        pid: i32,
        listener: Option<OwnedFd>,
        request: Request,
        log: File,
        release: Option<OwnedFd>,
    ) -> io::Result<()> {
        match &listener {
            Some(listener) => notify::come_first(listener.as_fd(), pid),
            None => trace::seize(pid)?,
        }
        let name = request.root.to_string();
        self.roles.push(Role::new(name, self.runs.len(), false));
        self.tasks.insert(pid, Task::new(self.roles.len() - 1, pid));
        let (began, phase, payload, executing) = (Instant::now(), Phase::Setup, None, None);
        let (fired, injected, points) = (false, Vec::new(), 0);
        let (root, reporting, stacked, swept) = (pid, pid, false, None);
        let files = Files::default();
        let mut run = Run {
            request,
            log,
            began,
            phase,
            root,
            payload,
            fired,
            swept,
            injected,
            stacked,
            points,
            listener,
            release,
            reporting,
            executing,
            files,
        };
        files::begin(&mut run);
        self.runs.push(run);
        Ok(())
    }

    /// When `tick` must be called at the latest, if nothing else happens.
    pub(crate) fn patience(&self) -> Option<Duration> {
        let waits =
            self.held.is_some() || !self.early.is_empty() || self.runs.iter().any(|run| run.executing.is_some());
        let waits = waits || !self.waiting.is_empty() || !self.parting.is_empty();
        waits.then_some(TICK).into_iter().chain(self.next_delayed()).min()
    }

    /// Handles a change; returns a child or traced process that has ended.
    pub(crate) fn change(&mut self, change: Change) -> Option<Ended> {
        match change {
            Change::Ended(ended) => {
                self.ended(ended.pid, ended.status);
                Some(ended)
            }
            Change::Stopped(pid, stop) => {
                if let Some(how) = self.stopped(pid, stop) {
                    self.resume(pid, how);
                }
                None
            }
        }
    }

    fn ended(&mut self, pid: i32, status: i32) {
        self.early.remove(&pid);
        self.leaving.remove(&pid);
        self.delayed.retain(|one| one.pid != pid);
        self.waiting.retain(|one| one.pid != pid);
        self.parting.retain(|one| one.pid != pid);
        if let Some(held) = self.held.take_if(|held| held.pid == pid) {
            // Another process of the run ended it at its point.
            if held.killed.is_none() {
                self.kill(held.run, held.process, false);
            }
        }
        let Some(task) = self.tasks.remove(&pid) else { return };
        let role = &self.roles[task.role];
        let run = &mut self.runs[role.run];
        if pid == task.process {
            record::ended(run, &role.name, status);
        }
        if run.payload == Some(pid) {
            run.phase = Phase::Cleanup;
        }
    }

    /// Whether a process without a creator was created before all of a run were killed, its creator among them. With
    /// `at_once` no creator of another run may be about to report it.
    fn belongs_to_the_killed(&self, pid: i32, at_once: bool) -> bool {
        let swept = self.runs.iter().enumerate().filter_map(|(number, run)| Some((number, run.swept?)));
        let mut before = swept.filter(|(_, (_, at))| status::began(pid).is_some_and(|began| began <= *at));
        before.any(|(number, (victim, _))| match victim {
            Victim::Supervisor | Victim::Helper => false,
            // The payload, which is spared, may have created it.
            Victim::All => !at_once,
            Victim::Tree | Victim::Freeze => {
                !at_once || self.tasks.values().all(|task| self.roles[task.role].run == number)
            }
        })
    }

    /// Returns how the thread continues; it stays stopped without an answer.
    fn stopped(&mut self, pid: i32, stop: Stop) -> Option<Resume> {
        if !self.tasks.contains_key(&pid) {
            if stop == Stop::Started {
                self.early.insert(pid, Instant::now());
                if self.belongs_to_the_killed(pid, true) {
                    kill::end(pid);
                }
                return None;
            }
            // A thread that was taken for one of an unknown creator.
            return Some(if let Stop::Signal(number) = stop { Resume::Run(number) } else { Resume::Run(0) });
        }
        match stop {
            Stop::Call => self.at_stop(pid),
            Stop::Return => self.at_edge(pid),
            Stop::Clone => {
                self.created(pid);
                self.at_return(pid)
            }
            Stop::Exec => {
                let instant = self.executed(pid);
                let how = self.at_return(pid)?;
                self.wait_for_owner(pid, instant, how)
            }
            Stop::Exit => {
                let task = self.tasks.get(&pid)?;
                let ends = self.runs[self.roles[task.role].run].payload == Some(pid);
                self.wait_for_owner(pid, ends.then_some(request::Instant::End), Resume::Run(0))
            }
            Stop::Started => Some(Resume::Run(0)),
            Stop::Group => Some(Resume::Listen),
            Stop::Signal(number) => Some(Resume::Run(number)),
        }
    }

    fn at_stop(&mut self, pid: i32) -> Option<Resume> {
        let (Some(task), Ok(call)) = (self.tasks.get(&pid), trace::call(pid)) else { return Some(Resume::Run(0)) };
        let every = self.runs[self.roles[task.role].run].request.every();
        let described = describe(pid, task.process, &call, every, &self.leaving);
        self.leaving.extend(described.leaving);
        // A child that is not traced has the filter all the same.
        let _ = match described.untraced {
            Some((Flags::Argument, value)) => trace::set_first_argument(pid, is_i386(&call), value),
            Some((Flags::Memory(address), value)) => trace::write_memory(pid, address, value),
            None => Ok(()),
        };
        if let Some(what) = hides(&call) {
            self.note(task.role, what);
        }
        self.at_call(pid, &call, described.point)
    }

    /// Notes once of each process what cannot be seen of it.
    fn note(&mut self, role: usize, what: &'static str) {
        let role = &mut self.roles[role];
        if role.notes.insert(what) {
            self.runs[role.run].note(&serde_json::json!({"note": format!("role {}: {what}", role.name)}));
        }
    }

    /// A thread is about to make a call: a point, or not.
    fn at_call(&mut self, pid: i32, call: &Call, point: Option<Point>) -> Option<Resume> {
        let task = self.tasks.get_mut(&pid)?;
        (task.payload, task.due, task.pending, task.result) = (false, false, None, None);
        task.look = None;
        let role = &mut self.roles[task.role];
        let (number, run) = (role.run, &mut self.runs[role.run]);
        let recorded = !run.fired || run.request.explain || !run.request.files.is_empty();
        let Some(point) = point.filter(|_| role.begun && !role.payload && recorded) else {
            task.payload = !role.payload && run.payload.is_none() && executes(pid, call, &run.request.payload);
            return Some(Resume::Run(0));
        };
        if point.operation == "execve" {
            task.payload = run.payload.is_none() && executes(pid, call, &run.request.payload);
        }
        if point.operation == "kill" && is_fatal(&point.class) && run.phase == Phase::Execution {
            run.phase = Phase::Timeout;
        }
        let ordinal = *role.counts.entry(point.clone()).and_modify(|count| *count += 1).or_insert(1);
        task.pending = record::begin(run, role, pid, call, &point, ordinal);
        task.look = files::expect(run, pid, call, &point);
        let resumed = if task.pending.is_some() || task.look.is_some() { Resume::ToReturn } else { Resume::Run(0) };
        if run.fired {
            return Some(resumed);
        }
        if let Some(fault) = run.request.fault.as_ref().filter(|fault| fault.is_at(&role.name, &point, ordinal)) {
            if fault.after {
                task.due = true;
                return Some(Resume::ToReturn);
            }
            return self.fire_at(pid);
        }
        let lives = self.tasks.contains_key(&run.root);
        match run.fault_at(&role.name, &point, ordinal, lives) {
            Some(how) => {
                stack::record(run, pid);
                self.inject(pid, number, call, how, resumed)
            }
            None => self.part(pid, &point, resumed),
        }
    }

    fn at_return(&mut self, pid: i32) -> Option<Resume> {
        if let Some(task) = self.tasks.get_mut(&pid)
            && let Some(pending) = task.pending.take()
        {
            record::returned(&mut self.runs[self.roles[task.role].run], &pending, pid);
        }
        if let Some(task) = self.tasks.get_mut(&pid)
            && let Some(look) = task.look.take()
        {
            let role = &self.roles[task.role];
            task.due |= files::look(&mut self.runs[role.run], pid, &role.name, &look);
        }
        if self.tasks.get_mut(&pid).is_some_and(|task| std::mem::take(&mut task.due)) {
            return self.fire_at(pid);
        }
        Some(Resume::Run(0))
    }

    fn created(&mut self, pid: i32) {
        let (Ok(child), Some(creator)) = (trace::event_message(pid), self.tasks.get_mut(&pid)) else { return };
        // The filter stops no clone of a thread whose flags are in an argument.
        let (pending, by) = (creator.pending.take(), creator.role);
        let task = if Path::new(&format!("/proc/{}/task/{child}", creator.process)).exists() {
            Task::new(creator.role, creator.process)
        } else if self.roles[creator.role].payload || self.roles.len() >= MOST_ROLES {
            Task::new(creator.role, child)
        } else {
            let role = Role::of_child(&mut self.roles[creator.role]);
            self.roles.push(role);
            Task::new(self.roles.len() - 1, child)
        };
        if pending.is_some() || task.process == child {
            let (creator, role) = (&self.roles[by], &self.roles[task.role]);
            let number = pending.map(|pending| pending.number);
            record::created(&mut self.runs[role.run], number, &creator.name, &role.name, child);
        }
        self.tasks.insert(child, task);
        if self.early.remove(&child).is_some() {
            self.resume(child, Resume::Run(0));
        }
    }

    /// Returns the instant that this is, if a command can wait at it.
    fn executed(&mut self, pid: i32) -> Option<request::Instant> {
        // A thread that executes becomes its process's first one, and the others end (execve(2)).
        let former = trace::event_message(pid).unwrap_or(pid);
        let mut task = self.tasks.remove(&former)?;
        self.tasks.retain(|_, other| other.process != task.process);
        self.leaving.remove(&pid);
        let role = &mut self.roles[task.role];
        let first = !std::mem::replace(&mut role.begun, true) && pid == self.runs[role.run].root;
        let mut instant = first.then_some(request::Instant::Start);
        if std::mem::take(&mut task.payload) {
            instant = Some(request::Instant::Payload);
            let run = &mut self.runs[role.run];
            (role.payload, run.payload, run.phase) = (true, Some(pid), Phase::Execution);
            run.note(&serde_json::json!({"payload": role.name}));
            // This instant has a name of its own, the same in every run.
            task.due |= run.request.fault.as_ref().is_some_and(|fault| fault.operation == PAYLOAD);
            // No other filter than ours: it can run without. A filter of the sandbox's has to stay.
            let (unfiltered, ends) = (filters(pid) == Some(1), run.request.hold.contains(&request::Instant::End));
            if unfiltered || ends {
                let _ = trace::follow(pid, unfiltered, ends);
            }
        }
        self.tasks.insert(pid, task);
        instant
    }

    /// Continues what waits for time to pass.
    pub(crate) fn tick(&mut self) {
        self.release_delayed();
        self.release_waiting();
        self.release_parting();
        // The creator was killed before it could report them.
        let lost: Vec<i32> =
            self.early.iter().filter(|(_, since)| since.elapsed() > PATIENCE / 40).map(|(pid, _)| *pid).collect();
        for pid in lost {
            self.early.remove(&pid);
            if self.belongs_to_the_killed(pid, false) {
                kill::end(pid);
                continue;
            }
            if let Some(run) = self.runs.len().checked_sub(1) {
                self.roles.push(Role::new("unknown".to_owned(), run, true));
                self.tasks.insert(pid, Task::new(self.roles.len() - 1, pid));
            }
            self.resume(pid, Resume::Run(0));
        }
        for number in 0..self.runs.len() {
            self.follow(number);
        }
        if self.held.is_some() {
            self.find_all_children();
        }
        self.kill_if_quiet();
    }
}

fn is_fatal(signal: &str) -> bool {
    matches!(signal, "SIGKILL" | "SIGTERM" | "SIGINT" | "SIGQUIT" | "SIGHUP" | "SIGXCPU" | "6")
}
