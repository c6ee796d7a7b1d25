//! Faults of calls: an error instead of a call or after it, a delay, or a lie: the call does not happen, and reports success.

use std::time::{Duration, Instant};

use leakcheck_sys::trace::{self, Call, Resume};
use serde::Deserialize;

use super::points::{Point, bytes_at, describe_watched, number_at};
use super::x86_64::{NATIVE, WATCHED};
use super::{Run, Tracer};

/// A fault at some calls of a run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CallFault {
    role: String,
    pub(super) operation: String,
    class: String,
    /// The first of these calls that it is at.
    first: u32,
    /// The last one; without it, all until the command has ended.
    last: Option<u32>,
    how: How,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum How {
    /// The call does not happen, and fails.
    Errno(i32),
    /// It happens, and then fails.
    After(i32),
    /// It happens so many milliseconds later.
    Delay(u64),
    /// It does not happen, and reports success.
    Lie,
}

impl CallFault {
    fn is_at(&self, role: &str, point: &Point, ordinal: u32, lives: bool) -> bool {
        let counted = match self.last {
            Some(last) => (self.first..=last).contains(&ordinal),
            None => lives && ordinal >= self.first,
        };
        counted && self.operation == point.operation && self.class == point.class && self.role == role
    }
}

/// A thread whose call happens later.
pub(super) struct Delayed {
    pub(super) pid: i32,
    run: usize,
    until: Instant,
    resumed: Resume,
    /// What it has reported and waits for the answer to, instead of a stop.
    pub(super) report: Option<u64>,
}

/// Whether no filter stops at the calls of an operation.
pub(super) fn is_watched(operation: &str) -> bool {
    WATCHED.iter().any(|row| row.operation == operation)
}

impl Run {
    /// What the plan has for this call. `lives` is whether the command has not ended.
    pub(super) fn fault_at(&mut self, role: &str, point: &Point, ordinal: u32, lives: bool) -> Option<How> {
        let number = self.request.faults.iter().position(|fault| fault.is_at(role, point, ordinal, lives))?;
        if !self.injected.contains(&number) {
            self.injected.push(number);
            self.note(&serde_json::json!({"injected": self.phase.name(), "fault": number}));
        }
        Some(self.request.faults[number].how)
    }
}

impl Tracer {
    /// Performs a fault at a call that a thread is about to make.
    pub(super) fn inject(&mut self, pid: i32, run: usize, call: &Call, how: How, resumed: Resume) -> Option<Resume> {
        let task = self.tasks.get_mut(&pid)?;
        let reports = self.runs[run].listener.is_some();
        let result = match how {
            How::Errno(error) => i64::from(-error),
            How::Lie => success(pid, task.process, call),
            How::After(error) => {
                task.result = Some(i64::from(-error));
                task.before = learned(pid, call);
                return Some(if reports { resumed } else { Resume::ToReturn });
            }
            How::Delay(ms) => {
                let until = Instant::now() + Duration::from_millis(ms);
                self.delayed.push(Delayed { pid, run, until, resumed, report: None });
                return None;
            }
        };
        if reports {
            task.result = Some(result);
        } else {
            // It may have been killed meanwhile.
            let _ = trace::set_result(pid, result, true);
        }
        Some(resumed)
    }

    /// A thread enters a call, or leaves one.
    pub(super) fn at_edge(&mut self, pid: i32) -> Option<Resume> {
        if self.watches(pid)
            && let Ok(call) = trace::call(pid)
        {
            return match describe_watched(pid, &call) {
                None => Some(Resume::Run(0)),
                point => self.at_call(pid, &call, point),
            };
        }
        if let Some(result) = self.tasks.get_mut(&pid).and_then(|task| task.result.take()) {
            let _ = trace::set_result(pid, result, false);
            for (at, word) in self.tasks.get_mut(&pid).map(|task| std::mem::take(&mut task.before)).unwrap_or_default()
            {
                let _ = trace::write_memory(pid, at, word);
            }
        }
        self.at_return(pid)
    }

    /// Whether a thread stops at each of its calls. A payload never does.
    fn watches(&self, pid: i32) -> bool {
        let Some(role) = self.tasks.get(&pid).map(|task| &self.roles[task.role]) else { return false };
        let run = &self.runs[role.run];
        role.begun && !role.payload && !run.fired && run.request.watches()
    }

    /// Continues a stopped thread. It may have been killed meanwhile.
    pub(super) fn resume(&self, pid: i32, how: Resume) {
        let how = match how {
            Resume::Run(signal) if self.watches(pid) => Resume::Calls(signal),
            how => how,
        };
        let _ = trace::resume(pid, how);
    }

    /// When the next delayed call happens.
    pub(super) fn next_delayed(&self) -> Option<Duration> {
        self.delayed.iter().map(|one| one.until.saturating_duration_since(Instant::now())).min()
    }

    pub(super) fn release_delayed(&mut self) {
        let now = Instant::now();
        for one in self.delayed.extract_if(.., |one| one.until <= now).collect::<Vec<_>>() {
            match one.report {
                Some(id) => self.answer(one.run, id, None),
                None => self.resume(one.pid, one.resumed),
            }
        }
    }
}

/// What a call returns that has succeeded: what it was to write, the process for which it waited, or 0.
fn success(thread: i32, process: i32, call: &Call) -> i64 {
    if call.arch != NATIVE {
        return 0;
    }
    let [first, second, third, fourth, fifth, _] = call.arguments;
    let result = match call.number {
        1 | 18 | 44 => third,
        40 => fourth,
        275 | 326 => fifth,
        20 | 296 | 328 => (0..third.min(1024)).map(|n| number_at(thread, second + 16 * n + 8)).sum(),
        61 => return waited_for(thread, process, signed(first), second),
        247 => return waited_for_id(thread, process, [first, second, third]),
        _ => 0,
    };
    result.cast_signed()
}

/// The memory to which a wait writes how a child has ended: a wait that fails writes nothing.
fn learned(thread: i32, call: &Call) -> Vec<(u64, u64)> {
    let (at, words) = match (call.arch, call.number) {
        (NATIVE, 61) => (call.arguments[1], 1),
        (NATIVE, 247) => (call.arguments[2], 4),
        _ => return Vec::new(),
    };
    let places = (0..words).map(|n| at.wrapping_add(8 * n)).filter(|_| at != 0);
    places.map(|at| (at, number_at(thread, at))).collect()
}

/// A wait4(2) that reports the end of a child.
fn waited_for(thread: i32, process: i32, asked: i32, status: u64) -> i64 {
    let Some(child) = (if asked > 0 { Some(asked) } else { first_child(process) }) else {
        return i64::from(-libc::ECHILD);
    };
    if let Ok(bytes) = bytes_at(thread, status, 8).try_into() {
        let _ = trace::write_memory(thread, status, u64::from_ne_bytes(bytes) & !0xffff_ffff);
    }
    child.into()
}

/// A waitid(2) that does, in a `siginfo_t`: SIGCHLD, `CLD_EXITED`, the child, status 0.
fn waited_for_id(thread: i32, process: i32, [kind, id, info]: [u64; 3]) -> i64 {
    let child = match kind {
        1 => Some(signed(id)),
        3 => last_number(&format!("/proc/{process}/fdinfo/{id}"), "NSpid:"),
        _ => first_child(process),
    };
    let Some(child) = child else { return i64::from(-libc::ECHILD) };
    let words = [libc::SIGCHLD, libc::CLD_EXITED, child, 0];
    for (at, word) in words.into_iter().enumerate().filter(|_| info != 0) {
        let _ = trace::write_memory(thread, info + 8 * at as u64, word.unsigned_abs().into());
    }
    0
}

/// A child of a process, as this one names it.
fn first_child(process: i32) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children")).ok()?;
    last_number(&format!("/proc/{}/status", text.split_ascii_whitespace().next()?), "NSpid:")
}

fn last_number(path: &str, field: &str) -> Option<i32> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(field))?.split_ascii_whitespace().last()?.parse().ok()
}

#[allow(clippy::cast_possible_truncation, reason = "it is an int")]
fn signed(argument: u64) -> i32 {
    argument as i32
}
