//! Process 1 of a box: creates its root, starts the payload, reaps. When it exits, the kernel kills everything in the
//! box.

use std::os::fd::{AsFd, OwnedFd};

use leakcheck_sys as sys;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::process::{
    DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal, setsid, umask,
};

use crate::archive;
use crate::error::{Doing, Result};
use crate::job::{Job, Wires};
use crate::message::{Message, send};
use crate::payload;
use crate::root;
use crate::sabotage::removed;

/// Runs as process 1, forked from the supervisor into new namespaces.
pub(crate) fn main(job: &Job, wires: &Wires) -> ! {
    // Must not hold the box's lock: the lock is free as soon as the supervisor is dead.
    let _ = sys::close_all_but(&wires.all());
    match serve(job, wires) {
        Ok(ended) => send(wires.report.as_fd(), &ended),
        Err(e) => send(wires.report.as_fd(), &Message::Failed(e.to_string())),
    }
    // The supervisor ends it. To exit at the same time would be another order of events in every run.
    readable(&wires.supervisor, None);
    sys::exit(0)
}

fn serve(job: &Job, wires: &Wires) -> Result<Message> {
    if !removed("survivor") {
        set_parent_process_death_signal(Some(Signal::KILL)).during("set parent-death signal")?;
    }
    // The supervisor may have died before that: then no signal arrives.
    if readable(&wires.supervisor, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        sys::exit(1);
    }
    if let Some(mapped) = &wires.mapped {
        readable(mapped, None);
    }
    // In a user namespace of one user the payload has the same uid: it must not trace or read this process.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).during("set undumpable")?;
    setsid().during("make session")?;
    umask(Mode::empty());
    root::make(&job.layout)?;
    if let Some(files) = wires.archive.as_ref().filter(|_| !job.pack) {
        archive::unpack(files, root::WORK, job.layout.user)?;
    }
    let clone_target = wires.entrances.clone_target.as_ref().map(AsFd::as_fd);
    let payload = sys::fork(0, clone_target).during("fork the payload")?;
    let Some(payload) = payload else { payload::main(job, wires) };
    loop {
        let ended = sys::wait(None).during("wait for the payload")?;
        if ended.pid != payload.pid {
            continue;
        }
        if let Some(files) = wires.archive.as_ref().filter(|_| job.pack && ended.status == 0) {
            archive::pack(files, root::WORK)?;
        }
        let cpu_us = u64::try_from(ended.cpu.as_micros()).unwrap_or(u64::MAX);
        return Ok(Message::Ended { status: ended.status, cpu_us, peak: ended.peak });
    }
}

fn readable(fd: &OwnedFd, timeout: Option<&Timespec>) -> bool {
    let mut one = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut one, timeout).is_ok_and(|ready| ready > 0)
}
