//! A run of refbox whose calls wait until the test lets them happen, lets them fail, or kills the supervisor.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use leakcheck_sys::notify::{self, Notification};
use leakcheck_sys::open_pidfd;
use leakcheck_sys::trace::{Instruction, read_memory};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, pidfd_send_signal};

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Happen,
    Fail(i32),
    /// The caller gets SIGKILL, and the call does not happen.
    Kill,
}

/// A call that waits.
pub(crate) struct Call {
    pub(crate) number: i64,
    pub(crate) arguments: [u64; 6],
    /// Of the supervisor, and not of the box's process 1.
    pub(crate) by_supervisor: bool,
    pid: i32,
}

impl Call {
    /// The text in an argument: the caller waits, so it has not changed.
    pub(crate) fn path(&self, argument: usize) -> String {
        let mut bytes = [0; 256];
        let count = read_memory(self.pid, self.arguments[argument], &mut bytes).unwrap_or(0);
        let text = bytes[..count].split(|b| *b == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }
}

/// Runs `command` to its end, and asks `decide` before each of these calls that refbox makes.
pub(crate) fn run(mut command: Command, numbers: &'static [i64], mut decide: impl FnMut(&Call) -> Answer) -> Child {
    let (listeners, listener) = channel();
    // A filter is for one thread and what it starts.
    let starter = thread::spawn(move || {
        send_listener(numbers, &listeners);
        command.spawn().unwrap()
    });
    let listener: OwnedFd = listener.recv().unwrap();
    loop {
        poll(&mut [PollFd::new(&listener, PollFlags::IN)], None).unwrap();
        let report = match notify::receive(listener.as_fd()) {
            Ok(Some(report)) => report,
            Ok(None) => continue,
            // All that have the filter have ended.
            Err(_) => break,
        };
        let call = Call {
            number: i64::try_from(report.call.number).unwrap(),
            arguments: report.call.arguments,
            by_supervisor: parent(report.pid) == Some(std::process::id()),
            pid: report.pid,
        };
        // Neither the starter nor the payload.
        let program = fs::read_link(format!("/proc/{}/exe", report.pid));
        let is_refbox = program.is_ok_and(|program| program == *super::REFBOX);
        let answer = if is_refbox { decide(&call) } else { Answer::Happen };
        carry_out(answer, &report, listener.as_fd());
    }
    starter.join().unwrap()
}

/// Adds a filter for these calls of x86-64 to this thread (seccomp(2)).
fn send_listener(numbers: &[i64], to: &Sender<OwnedFd>) {
    const LOAD_NUMBER: Instruction = (0x20, 0, 0, 0);
    const ALLOW: Instruction = (0x06, 0, 0, 0x7fff_0000);
    const REPORT: Instruction = (0x06, 0, 0, 0x7fc0_0000);
    let tests = numbers.iter().flat_map(|number| [(0x15, 0, 1, u32::try_from(*number).unwrap()), REPORT]);
    let program: Vec<Instruction> = std::iter::once(LOAD_NUMBER).chain(tests).chain([ALLOW]).collect();
    to.send(notify::add_reporting_filter(&program).unwrap()).unwrap();
}

fn parent(pid: i32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

fn carry_out(answer: Answer, report: &Notification, listener: BorrowedFd<'_>) {
    let error = match answer {
        Answer::Happen => None,
        Answer::Fail(error) => Some(error),
        Answer::Kill => {
            let caller = open_pidfd(report.pid).unwrap();
            // It still waits, so the number is still its own.
            assert!(notify::waits(listener, report.id));
            pidfd_send_signal(&caller, Signal::KILL).unwrap();
            return;
        }
    };
    // The caller may have been killed meanwhile.
    let _ = notify::answer(listener, report.id, error.map(|error| -i64::from(error)));
}
