//! The points of a command that uses ptrace itself: nothing can be traced twice, so its filter reports them instead
//! (seccomp_unotify(2)), and each call waits for an answer.
//!
//! Only the instants before calls are told, and neither creation nor end of a process is: a child has its role from its
//! creator once it makes its first call, an exec is seen by the command line. Every process but the command itself is
//! held by a pidfd, or if there are very many known by when it began, since it can end, and its number be given again,
//! without notice.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use leakcheck_sys::notify::{self, Notification};
use leakcheck_sys::trace::{Call, Instruction};
use leakcheck_sys::{open_pidfd, run_last, wait_until};

use super::filter::is_for_tracer;
use super::points::{Described, bytes_at, creates_or_ends, describe};
use super::request::Victim;
use super::status::{activity, began};
use super::x86_64::{TRACES, WATCHES, added_filter, hides};
use super::{MOST_ROLES, Phase, Role, Task, Tracer, kill, record};

/// Reports that are handled before something else gets its turn.
const AT_ONCE: usize = 256;
/// Processes that are held by a pidfd: descriptors are limited.
const MOST_HELD: usize = 256;
/// More instructions of a filter are not looked at (`BPF_MAXINSNS`).
const LONGEST: usize = 4096;

/// The processes of all reported runs.
#[derive(Default)]
pub(super) struct Reported {
    held: HashMap<i32, Identity>,
    /// With how many of them those that have ended are forgotten.
    most: usize,
    /// Threads that are about to create a process.
    creators: Vec<Creator>,
}

/// What tells a process from a later one of its number.
enum Identity {
    Pidfd(OwnedFd),
    /// When it began (field 22 of proc_pid_stat(5)).
    Began(u64),
}

impl Identity {
    fn has_ended(&self, process: i32) -> bool {
        match self {
            Self::Pidfd(pidfd) => has_ended(pidfd.as_fd()),
            Self::Began(_) => self.is_reaped(process) || activity(process).is_none(),
        }
    }

    fn is_reaped(&self, process: i32) -> bool {
        match self {
            Self::Pidfd(pidfd) => is_reaped(pidfd.as_fd()),
            Self::Began(time) => began(process) != Some(*time),
        }
    }
}

/// A thread that is about to create a process: its process, and the number of the recorded call.
struct Creator {
    thread: i32,
    process: i32,
    call: Option<u32>,
}

impl Reported {
    /// Whether the number still belongs to the process that had it.
    fn is_alive(&self, process: i32) -> bool {
        // The command itself keeps its number until it is reaped.
        self.held.get(&process).is_none_or(|identity| !identity.has_ended(process))
    }

    /// A process that may be killed.
    pub(super) fn pidfd(&self, process: i32) -> io::Result<OwnedFd> {
        if let Some(Identity::Pidfd(pidfd)) = self.held.get(&process) {
            return pidfd.try_clone();
        }
        let pidfd = open_pidfd(process)?;
        // Now nothing else can get its number, if it still has it.
        if self.held.get(&process).is_some_and(|identity| identity.is_reaped(process)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(pidfd)
    }
}

/// Lets each report interrupt what else runs: a signal that a thread gets before its report is received interrupts its call,
/// and others of the run send signals, such as SIGCHLD. The signal of another CPU is rarely so fast.
pub(super) fn come_first(listener: BorrowedFd<'_>, process: i32) {
    // Without either, only more calls are interrupted.
    let _ = notify::wake_at_once(listener);
    let _ = run_last(process);
}

impl Tracer {
    /// What is readable once a call was reported.
    pub(crate) fn listeners(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.runs.iter().filter_map(|run| run.listener.as_ref()).map(AsFd::as_fd)
    }

    /// Answers what was reported so far; some may remain.
    pub(crate) fn answer_reports(&mut self) {
        for number in 0..self.runs.len() {
            for _ in 0..AT_ONCE {
                let Some(listener) = &self.runs[number].listener else { break };
                match notify::receive(listener.as_fd()) {
                    Ok(Some(report)) => self.reported(number, &report),
                    Ok(None) => break,
                    Err(_) => self.runs[number].listener = None,
                }
            }
        }
    }

    fn reported(&mut self, number: usize, report: &Notification) {
        self.follow(number);
        let Some(process) = self.known_or_ended(number, report.pid) else { return };
        let every = self.runs[number].request.every();
        // The payload's calls are no points.
        let watched = process.filter(|process| !self.roles[self.tasks[process].role].payload);
        let described = watched.map(|process| describe(report.pid, process, &report.call, every, &self.leaving));
        let Described { point, leaving, .. } = described.unwrap_or_default();
        self.leaving.extend(leaving);
        let refused = is_for_tracers(report.pid, &report.call);
        let Some(listener) = &self.runs[number].listener else { return };
        if !notify::waits(listener.as_fd(), report.id) {
            return;
        }
        self.runs[number].reporting = report.pid;
        if let Some(process) = process {
            self.note_what_is_hidden(process, &report.call, refused);
            let operation = match watched {
                Some(_) => point.as_ref().map(|point| point.operation),
                None => creates_or_ends(report.pid, &report.call),
            };
            match operation {
                Some("clone") => self.expect_child(report.pid, process),
                Some("exit") => self.find_children(process),
                _ => {}
            }
            let (points, creates) =
                (self.runs[number].points, point.as_ref().is_some_and(|one| one.operation == "clone"));
            let answer = self.at_call(process, &report.call, point);
            if creates && self.runs[number].request.explain && self.runs[number].points > points {
                let mut creators = self.reported.creators.iter_mut();
                if let Some(creator) = creators.find(|creator| creator.thread == report.pid) {
                    creator.call = Some(self.runs[number].points);
                }
            }
            if answer.is_none() {
                // It was killed, or waits at its point.
                if let Some(held) = self.held.as_mut().filter(|held| held.pid == process) {
                    held.report = Some(report.id);
                }
                if let Some(one) = self.delayed.iter_mut().find(|one| one.pid == process && one.report.is_none()) {
                    one.report = Some(report.id);
                }
                return;
            }
            self.expect_exec(number, process);
        }
        let result = process.and_then(|process| self.tasks.get_mut(&process)?.result.take());
        self.answer(number, report.id, result.or(refused.then_some(-i64::from(libc::EINVAL))));
    }

    pub(super) fn answer(&self, number: usize, id: u64, result: Option<i64>) {
        if let Some(listener) = &self.runs[number].listener {
            // It may have been killed meanwhile.
            let _ = notify::answer(listener.as_fd(), id, result);
        }
    }

    /// Notices that a process has executed its program, or that the payload has ended.
    pub(super) fn follow(&mut self, number: usize) {
        let run = &mut self.runs[number];
        if let Some((process, _)) = run.executing.take_if(|(process, words)| command_line(*process) != *words) {
            self.executed(process);
            if self.tasks.get_mut(&process).is_some_and(|task| std::mem::take(&mut task.due)) {
                self.fire_at(process);
            }
        }
        let run = &mut self.runs[number];
        let is_over = |pid| !self.tasks.contains_key(&pid) || !self.reported.is_alive(pid);
        if matches!(run.phase, Phase::Execution | Phase::Timeout) && run.payload.is_some_and(is_over) {
            run.phase = Phase::Cleanup;
        }
    }

    /// The command itself, or the payload, may be about to execute its program.
    fn expect_exec(&mut self, number: usize, process: i32) {
        let Some(task) = self.tasks.get(&process) else { return };
        let run = &mut self.runs[number];
        if task.payload || !self.roles[task.role].begun {
            run.executing = Some((process, command_line(process)));
        } else {
            // It makes another call: its exec failed.
            run.executing.take_if(|(other, _)| *other == process);
        }
    }

    fn note_what_is_hidden(&mut self, process: i32, call: &Call, refused: bool) {
        let what = match hides(call) {
            Some(TRACES) | None if refused => {
                "its filter for ptrace is refused (EINVAL), so that ptrace sees all calls"
            }
            Some(TRACES) | None => return,
            Some(WATCHES) => {
                "it watches calls of others itself (seccomp user notification), which fails while its own are"
            }
            Some(other) => other,
        };
        if let Some(task) = self.tasks.get(&process) {
            self.note(task.role, what);
        }
    }

    /// The process of a thread that waits, if it is known; none at all if it belongs to those who were killed, and is
    /// killed now. Who reports here is of this run, whoever created it.
    fn known_or_ended(&mut self, number: usize, thread: i32) -> Option<Option<i32>> {
        if let Some(process) = self.process_of(thread) {
            return Some(Some(process));
        }
        let Some((process, _)) = family(thread) else { return Some(None) };
        let run = &self.runs[number];
        if let Some((Victim::Tree | Victim::Freeze, at)) = run.swept
            && began(process).is_some_and(|time| time <= at)
        {
            kill::end(process);
            return None;
        }
        // Its creator has ended before its first call, and was of the payload: of others, each creation is known.
        let payload = run.payload.and_then(|payload| self.tasks.get(&payload)).map(|task| task.role);
        if let Some(role) = payload {
            self.enter(process, role);
        }
        Some(self.is_known(process).then_some(process))
    }

    /// The known process of a thread that waits: none if its creator is not known.
    fn process_of(&mut self, thread: i32) -> Option<i32> {
        if self.is_known(thread) {
            return Some(thread);
        }
        let (process, parent) = family(thread)?;
        if !self.is_known(process) {
            self.find_in(parent, process);
        }
        if !self.is_known(process) && self.is_known(parent) {
            let role = self.tasks[&parent].role;
            if self.roles[role].payload {
                self.enter(process, role);
            } else if let Some(at) = self.reported.creators.iter().position(|creator| creator.process == parent) {
                // The thread that created it has ended.
                let creator = self.reported.creators.remove(at);
                self.enter_child(process, role, creator.call);
            }
        }
        self.is_known(process).then_some(process)
    }

    fn is_known(&self, process: i32) -> bool {
        self.tasks.contains_key(&process) && self.reported.is_alive(process)
    }

    /// Whether a process is known, though it may have ended: until it is reaped, nothing else has its number.
    fn was_known(&self, process: i32) -> bool {
        self.tasks.contains_key(&process)
            && self
                .reported
                .held
                .get(&process)
                .is_none_or(|identity| !identity.has_ended(process) || !identity.is_reaped(process))
    }

    /// Finds what the threads of a process have created meanwhile.
    pub(super) fn find_children(&mut self, process: i32) {
        for thread in self.creating(process) {
            self.find_child(thread, None);
        }
    }

    /// Finds this child of a process, which was not known.
    fn find_in(&mut self, process: i32, child: i32) {
        for thread in self.creating(process) {
            self.find_child(thread, Some(child));
        }
    }

    /// The threads of a process that may have created another.
    fn creating(&self, process: i32) -> Vec<i32> {
        let of_it = |creator: &Creator| (creator.process == process).then_some(creator.thread);
        self.reported.creators.iter().filter_map(of_it).collect()
    }

    pub(super) fn find_all_children(&mut self) {
        let threads: Vec<i32> = self.reported.creators.iter().map(|creator| creator.thread).collect();
        for thread in threads {
            self.find_child(thread, None);
        }
    }

    fn expect_child(&mut self, thread: i32, process: i32) {
        self.find_child(thread, None);
        // The last one was killed before it made a call, or its creation failed.
        self.reported.creators.retain(|creator| creator.thread != thread);
        self.reported.creators.push(Creator { thread, process, call: None });
    }

    /// Gives the child of a thread that was about to create one its role: the `wanted` one, or the first that has none.
    fn find_child(&mut self, thread: i32, wanted: Option<i32>) {
        let Some(at) = self.reported.creators.iter().position(|creator| creator.thread == thread) else { return };
        let process = self.reported.creators[at].process;
        let path = format!("/proc/{process}/task/{thread}/children");
        let Ok(children) = std::fs::read_to_string(path) else { return };
        let mut children = children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
        if let Some(child) = children.find(|child| wanted.map_or_else(|| !self.was_known(*child), |one| one == *child))
            && let Some(role) = self.tasks.get(&process).map(|task| task.role)
        {
            let creator = self.reported.creators.remove(at);
            self.enter_child(child, role, creator.call);
        }
    }

    fn enter_child(&mut self, process: i32, creator: usize, call: Option<u32>) {
        if self.roles[creator].payload || self.roles.len() >= MOST_ROLES {
            return self.enter(process, creator);
        }
        let role = Role::of_child(&mut self.roles[creator]);
        if call.is_some() {
            record::created(&mut self.runs[role.run], call, &self.roles[creator].name, &role.name, process);
        }
        self.roles.push(role);
        self.enter(process, self.roles.len() - 1);
    }

    fn enter(&mut self, process: i32, role: usize) {
        let held = &mut self.reported.held;
        if held.len() >= self.reported.most.max(MOST_HELD) {
            for (process, _) in held.extract_if(|process, identity| identity.has_ended(*process)) {
                self.tasks.remove(&process);
            }
            self.reported.most = 2 * held.len();
        }
        let identity = match open_pidfd(process) {
            Ok(pidfd) if held.len() < MOST_HELD => Some(Identity::Pidfd(pidfd)),
            Ok(_) => began(process).map(Identity::Began),
            Err(_) => None,
        };
        if let Some(identity) = identity {
            held.insert(process, identity);
            self.tasks.insert(process, Task::new(role, process));
        }
    }
}

/// The threads of a process.
pub(super) fn threads(process: i32) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{process}/task")) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

pub(super) fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    wait_until(&[pidfd], Duration::ZERO).unwrap_or(true)
}

/// Whether an ended process has been waited for, so that another may have its number (`Pid: -1`, pidfd_open(2)).
fn is_reaped(pidfd: BorrowedFd<'_>) -> bool {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()));
    info.is_ok_and(|info| info.lines().any(|line| line == "Pid:\t-1"))
}

/// The arguments of the program that a process executes; empty once it has ended.
fn command_line(process: i32) -> Vec<u8> {
    std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default()
}

/// The process of a thread, and the one that created it or is its parent now.
fn family(thread: i32) -> Option<(i32, i32)> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok();
    Some((field("Tgid:")?, field("PPid:")?))
}

/// Whether a call adds a filter by which a tracer sees only some calls. Ours would hide these from it, since a report comes
/// before a stop (seccomp(2)); a tracer without such a filter stops at all calls, before they are reported.
fn is_for_tracers(thread: i32, call: &Call) -> bool {
    let Some(program) = added_filter(call) else { return false };
    let head = bytes_at(thread, program, 16);
    let (Some(length), Some(at)) = (head.first_chunk(), head.get(8..).and_then(<[u8]>::first_chunk)) else {
        return false;
    };
    let length = usize::from(u16::from_ne_bytes(*length)).min(LONGEST);
    bytes_at(thread, u64::from_ne_bytes(*at), 8 * length).chunks_exact(8).any(|one| {
        let instruction: Instruction = (
            u16::from_ne_bytes([one[0], one[1]]),
            one[2],
            one[3],
            u32::from_ne_bytes([one[4], one[5], one[6], one[7]]),
        );
        is_for_tracer(instruction)
    })
}
