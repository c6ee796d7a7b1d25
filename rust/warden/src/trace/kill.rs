//! The kill at a point: at once, or when all other threads of the run block.

use std::collections::HashSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Instant;

use leakcheck_sys::trace::Resume;
use leakcheck_sys::{open_pidfd, run_as_usual};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, pidfd_send_signal, setrlimit};

use super::notify::{has_ended, threads};
use super::request::Victim;
use super::status::{activity, began, now};
use super::{MOST_ROLES as MOST, PATIENCE, Task, Tracer, stack};

/// A thread that waits at its point until all others block, and then until those who are killed have ended.
pub(super) struct Held {
    pub(super) pid: i32,
    pub(super) process: i32,
    pub(super) run: usize,
    pub(super) since: Instant,
    /// State and context switches of the others, when they were last looked at.
    pub(super) others: Vec<(i32, String)>,
    /// What it has reported and waits for the answer to, instead of a stop.
    pub(super) report: Option<u64>,
    /// Who is killed, once the kill has happened.
    pub(super) killed: Option<Killed>,
}

/// How long a process may take to stop that waits for its child's execve(2): it may never do so.
const STOPPING: std::time::Duration = std::time::Duration::from_millis(20);

/// Processes that have got SIGKILL.
pub(super) type Killed = Vec<(i32, OwnedFd)>;

impl Tracer {
    /// The thread `pid` is at the point: the kill happens now, or when all others block.
    pub(super) fn fire_at(&mut self, pid: i32) -> Option<Resume> {
        let task = self.tasks.get(&pid)?;
        let (process, number) = (task.process, self.roles[task.role].run);
        let run = &mut self.runs[number];
        stack::record(run, pid);
        if run.request.fault.as_ref().is_some_and(|fault| fault.quiesced) {
            // Nothing else is a point from here on.
            run.fired = true;
            let (since, others) = (Instant::now(), Vec::new());
            self.held = Some(Held { pid, process, run: number, since, others, report: None, killed: None });
            return None;
        }
        let killed = self.kill(number, process, true);
        // An answer would let the call of a killed process happen; a stop does not.
        let is_killed = killed.iter().any(|(pid, _)| *pid == process);
        (!is_killed || self.runs[number].listener.is_none()).then_some(Resume::Run(0))
    }

    /// Kills when all others block, and continues the thread at the point once those who are killed have ended.
    pub(super) fn kill_if_quiet(&mut self) {
        let Some(held) = &self.held else { return };
        if let Some(killed) = &held.killed {
            // What it does next is the same in every run only if they are gone.
            if killed.iter().all(|(_, pidfd)| has_ended(pidfd.as_fd())) || held.since.elapsed() > PATIENCE {
                self.release();
            }
            return;
        }
        let notified = self.runs[held.run].listener.is_some();
        let of_run = |task: &&Task| self.roles[task.role].run == held.run && !self.roles[task.role].payload;
        let others = self.tasks.iter().filter(|(_, task)| of_run(task)).map(|(pid, _)| *pid);
        // Of reported processes, not each thread is known.
        let others = others.flat_map(|pid| if notified { threads(pid) } else { vec![pid] });
        let mut others: Vec<i32> = others.filter(|pid| *pid != held.pid).collect();
        others.sort_unstable();
        let others: Vec<(i32, String)> = others.into_iter().filter_map(|pid| Some((pid, activity(pid)?))).collect();
        let blocked = others.iter().all(|(_, activity)| !activity.starts_with('R'));
        let quiet = blocked && held.others == others;
        if quiet || held.since.elapsed() > PATIENCE {
            let killed = self.kill(held.run, held.process, quiet);
            if let Some(held) = &mut self.held {
                (held.since, held.killed) = (Instant::now(), Some(killed));
            }
        } else if let Some(held) = &mut self.held {
            held.others = others;
        }
    }

    /// Continues the thread that waits at its point.
    pub(super) fn release(&mut self) {
        let Some(held) = self.held.take() else { return };
        match held.report {
            Some(id) => self.answer(held.run, id, None),
            None => self.resume(held.pid, Resume::Run(0)),
        }
    }

    /// Kills, with `process` at the point.
    pub(super) fn kill(&mut self, number: usize, process: i32, quiet: bool) -> Killed {
        // There may be more processes than a common limit of descriptors (1024); nothing is started meanwhile.
        let limit = getrlimit(Resource::Nofile);
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
        let killed = self.kill_all(number, process, quiet);
        let _ = setrlimit(Resource::Nofile, limit);
        killed
    }

    fn kill_all(&mut self, number: usize, process: i32, quiet: bool) -> Killed {
        self.find_all_children();
        let run = &mut self.runs[number];
        run.fired = true;
        let Some((victim, sent)) = run.request.fault.as_ref().map(|fault| (fault.victim, fault.signal.signal())) else {
            return Vec::new();
        };
        let of_run = |task: &&Task| {
            let role = &self.roles[task.role];
            role.run == number && (victim != Victim::All || !role.payload)
        };
        let processes: HashSet<i32> = match victim {
            Victim::Supervisor if self.tasks.contains_key(&run.root) => HashSet::from([run.root]),
            Victim::Supervisor => HashSet::from([process]),
            Victim::Helper => HashSet::from([process]),
            Victim::All | Victim::Tree | Victim::Freeze => {
                self.tasks.values().filter(of_run).map(|task| task.process).collect()
            }
        };
        // A process of ours that has not been waited for keeps its number.
        let alive = processes.into_iter().filter(|pid| self.tasks.contains_key(pid));
        let mut pidfds: Killed = alive.filter_map(|pid| Some((pid, self.reported.pidfd(pid).ok()?))).collect();
        // Who was ended by others was not killed. The line comes before the kill: who sees the command end finds it.
        if !pidfds.is_empty() {
            run.note(&serde_json::json!({"fired": run.phase.name(), "quiet": quiet}));
        }
        if matches!(victim, Victim::Tree | Victim::Freeze) {
            add_descendants(&mut pidfds, None);
        }
        if victim == Victim::Freeze {
            // A creator first: if its children stop before, it gets SIGCHLD, which may end it (a notified call fails with EINTR
            // if the handler has no SA_RESTART), and what it has just created is nobody's.
            pidfds.sort_by_key(|(pid, _)| (began(*pid), *pid));
            // Beside others that are busy, who runs last would not stop in any bounded time.
            if run.listener.is_some() {
                pidfds.iter().for_each(|(pid, _)| hurry(*pid));
            }
            send(&pidfds, Signal::STOP);
            // Who is stopped creates nothing more, so this ends.
            add_descendants(&mut pidfds, Some(Signal::STOP));
        }
        send(&pidfds, sent);
        self.runs[number].swept = now().filter(|_| sent == Signal::KILL).map(|now| (victim, now));
        if sent != Signal::KILL {
            pidfds.clear();
        }
        pidfds
    }
}

/// Adds what the processes have created, and what that has, and sends it `signal`: what has just begun is unknown yet.
fn add_descendants(known: &mut Killed, signal: Option<Signal>) {
    let mut seen: HashSet<i32> = known.iter().map(|(pid, _)| *pid).collect();
    let (began, mut at) = (Instant::now(), 0);
    while at < known.len() && known.len() < MOST {
        let parent = known[at].0;
        at += 1;
        if signal.is_some() {
            wait_for_stop(parent, began + PATIENCE);
        }
        for thread in threads(parent) {
            let children =
                std::fs::read_to_string(format!("/proc/{parent}/task/{thread}/children")).unwrap_or_default();
            for child in children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()) {
                let Some(pidfd) = seen.insert(child).then(|| open_pidfd(child).ok()).flatten() else { continue };
                if let Some(signal) = signal {
                    hurry(child);
                    let _ = pidfd_send_signal(&pidfd, signal);
                }
                known.push((child, pidfd));
            }
        }
    }
}

/// Waits, however many there are no longer than until `last`, until the threads of a process that got SIGSTOP are stopped: a
/// fork(2) that has begun comes to its end before. One that waits for its child's execve(2) never is, and creates nothing.
/// Only its parent gets an event of that, so its state is read.
fn wait_for_stop(process: i32, last: Instant) {
    let began = Instant::now();
    while Instant::now() < last {
        let states: Vec<String> = threads(process).into_iter().filter_map(activity).collect();
        let waits = states.iter().any(|state| state.starts_with('D')) && began.elapsed() < STOPPING;
        if !waits && states.iter().all(|state| state.starts_with(['T', 't', 'D'])) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
}

/// Lets the threads of a process have the CPU as others have: it is about to be stopped.
fn hurry(process: i32) {
    for thread in threads(process) {
        let _ = run_as_usual(thread);
    }
}

fn send(processes: &[(i32, OwnedFd)], signal: Signal) {
    for (_, pidfd) in processes {
        // It may have ended.
        let _ = pidfd_send_signal(pidfd, signal);
    }
}

/// Ends a stopped process whose creator was killed before it could report it.
pub(super) fn end(process: i32) {
    if let Ok(pidfd) = open_pidfd(process) {
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
    }
}
