//! One execution, from the fork of process 1 to its last message. It enforces the limits; at the end all processes of the
//! box are dead, whatever happened.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use leakcheck_sys::{self as sys, Child};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

use crate::cgroup::Group;
use crate::error::{Doing, Error, Result};
use crate::init;
use crate::job::{Job, Wires};
use crate::message::{Message, take};
use crate::output::Stream;
use crate::sabotage::removed;
use crate::state::Phase;
use crate::user;
use crate::verdict::{Cause, Execution};

/// Time limit for setting up the sandbox, on a machine under load.
const SETUP: Duration = Duration::from_secs(30);
/// Time limit for killed processes to disappear.
const DYING: Duration = Duration::from_secs(30);
/// Minimum interval between two readings of the processor time.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(2);

/// What an execution needs and does not own.
pub(crate) struct Supervision<'a> {
    pub(crate) job: &'a Job,
    pub(crate) group: &'a Group<'a>,
    pub(crate) cpus: u32,
    pub(crate) stdin: &'a OwnedFd,
    pub(crate) archive: Option<&'a OwnedFd>,
    /// Readable when a signal asks us to end.
    pub(crate) signals: &'a OwnedFd,
}

/// The observations so far.
struct Progress {
    started: Option<Instant>,
    cause: Option<Cause>,
    /// By wait4(2), for a host on which no cgroup counts it.
    cpu: Duration,
    peak: Option<u64>,
    output: u64,
    ended: Option<Instant>,
}

impl Supervision<'_> {
    /// Runs the job, and calls `enter` at each phase.
    pub(crate) fn execute(&self, streams: &mut [Stream; 2], enter: &dyn Fn(Phase) -> Result<()>) -> Result<Execution> {
        let user_namespace = self.job.layout.user_namespace;
        let (report, report_end) = pipe_with(PipeFlags::CLOEXEC).during("start the box")?;
        let mapped = if user_namespace { Some(pipe_with(PipeFlags::CLOEXEC).during("start the box")?) } else { None };
        let (mapped, mapped_end) = mapped.unzip();
        let [stdout, stderr] = streams;
        let wires = Wires {
            report: report_end,
            stdin: self.stdin.try_clone().during("start the box")?,
            stdout: stdout.open()?,
            stderr: stderr.open()?,
            supervisor: pidfd_open(getpid(), PidfdFlags::empty()).during("start the box")?,
            mapped,
            entrances: self.group.entrances()?,
            archive: self.archive.map(OwnedFd::try_clone).transpose().during("start the box")?,
        };
        let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::CLONE_NEWIPC;
        flags |= libc::CLONE_NEWUTS | if user_namespace { libc::CLONE_NEWUSER } else { 0 };
        let init = sys::fork(flags, None);
        let init = if removed("panic") { Ok(init.expect("fork")) } else { init.during("make namespaces") }?;
        let Some(init) = init else { init::main(self.job, &wires) };
        drop(wires);
        let mut progress =
            Progress { started: None, cause: None, cpu: Duration::ZERO, peak: None, output: 0, ended: None };
        let watched = match mapped_end {
            Some(end) => user::map(init.pid, self.job.layout.user).map(|()| drop(end)),
            None => Ok(()),
        };
        let watched = watched.and_then(|()| self.watch(&init, report, streams, &mut progress, enter));
        // Whatever failed, nothing of the box lives on.
        kill(&init)?;
        watched?;
        while !streams.iter().all(Stream::at_end) {
            self.pump(streams, &mut progress);
        }
        let ended = progress.ended.unwrap_or_else(Instant::now);
        Ok(Execution {
            cause: progress.cause.unwrap_or(Cause::InitDied),
            wall: progress.started.map_or(Duration::ZERO, |started| ended - started),
            cpu: self.group.cpu().unwrap_or(progress.cpu),
            peak: self.group.peak().or(progress.peak),
            oom_kills: self.group.oom_kills(),
            output: progress.output,
        })
    }

    /// Returns when the payload has ended or must end.
    fn watch(
        &self,
        init: &Child,
        report: OwnedFd,
        streams: &mut [Stream; 2],
        progress: &mut Progress,
        enter: &dyn Fn(Phase) -> Result<()>,
    ) -> Result<()> {
        let mut report = fs::File::from(report);
        let mut unread = Vec::new();
        let setup_end = Instant::now() + SETUP;
        let mut next_reading = setup_end;
        while progress.cause.is_none() {
            let end = progress.started.map_or(setup_end, |started| started + self.job.limits.wall);
            let wait = end.min(next_reading).saturating_duration_since(Instant::now());
            let reported = {
                let mut fds = vec![
                    PollFd::new(&report, PollFlags::IN),
                    PollFd::new(self.signals, PollFlags::IN),
                    PollFd::new(&init.pidfd, PollFlags::IN),
                ];
                fds.extend(streams.iter().flat_map(Stream::poll_fds));
                match poll(&mut fds, Some(&timespec(wait))) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(e) => return Err(e).during("wait for the payload"),
                }
                !fds[0].revents().is_empty()
            };
            self.pump(streams, progress);
            if reported {
                let mut buffer = [0u8; 4096];
                let count = report.read(&mut buffer).during("read from process 1")?;
                unread.extend_from_slice(&buffer[..count]);
                for message in take(&mut unread) {
                    let begins = message == Message::Started;
                    progress.hear(message);
                    if begins {
                        enter(Phase::Execution)?;
                        next_reading = Instant::now();
                    }
                }
                // Only the death of process 1 closes the last end.
                if count == 0 && progress.cause.is_none() {
                    progress.cause = Some(Cause::InitDied);
                }
            }
            if progress.cause.is_none() {
                progress.cause = self.limit_reached(progress, end, &mut next_reading);
                if progress.cause.is_some() {
                    progress.ended = Some(Instant::now());
                    enter(Phase::Timeout)?;
                }
            }
        }
        Ok(())
    }

    fn limit_reached(&self, progress: &Progress, end: Instant, next_reading: &mut Instant) -> Option<Cause> {
        if let Some(number) = sys::next_signal(self.signals) {
            return Some(Cause::Signalled(number));
        }
        let limits = &self.job.limits;
        if progress.output > limits.output {
            return Some(Cause::Output);
        }
        let now = Instant::now();
        if now >= end {
            return Some(match progress.started {
                Some(_) => Cause::Wall,
                None => Cause::Failed(format!("set up the box: not done in {} s", SETUP.as_secs())),
            });
        }
        if progress.started.is_some() && now >= *next_reading {
            // If no cgroup counts it, the rlimit bounds each process.
            let used = self.group.cpu().unwrap_or_default();
            if used >= limits.cpu {
                return Some(Cause::Cpu);
            }
            // This many processors cannot use it up earlier.
            let soonest = (limits.cpu - used) / self.cpus.min(limits.processes).max(1);
            *next_reading = now + soonest.max(SHORTEST_INTERVAL);
        }
        None
    }

    fn pump(&self, streams: &mut [Stream; 2], progress: &mut Progress) {
        for stream in streams {
            let room = self.job.limits.output.saturating_sub(progress.output);
            progress.output += stream.pull(room);
            stream.push();
        }
    }
}

impl Progress {
    fn hear(&mut self, message: Message) {
        match message {
            Message::Started => self.started = Some(Instant::now()),
            Message::Ended { status, cpu_us, peak } => {
                self.ended = Some(Instant::now());
                (self.cpu, self.peak) = (Duration::from_micros(cpu_us), Some(peak));
                self.cause = self.cause.take().or(Some(Cause::Ended(status)));
            }
            Message::Failed(why) => self.cause = self.cause.take().or(Some(Cause::Failed(why))),
            Message::NotExecutable(why) => self.cause = self.cause.take().or(Some(Cause::NotExecutable(why))),
        }
    }
}

/// Kills process 1, whereupon the kernel kills its whole pid namespace; returns when all are gone.
fn kill(init: &Child) -> Result<()> {
    match pidfd_send_signal(&init.pidfd, Signal::KILL) {
        // It may be dead already.
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        // To wait for its end would be in vain. It ends with us, and its processes with their cgroup.
        Err(e) => return Err(e).during("kill the box"),
    }
    if !sys::wait_until(&[init.pidfd.as_fd()], DYING).during("wait for process 1")? {
        return Err(Error::Internal(format!("kill the box: process {} is still dying", init.pid)));
    }
    sys::wait(Some(init.pid)).map(drop).during("reap process 1")
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs().cast_signed(), tv_nsec: duration.subsec_nanos().into() }
}
