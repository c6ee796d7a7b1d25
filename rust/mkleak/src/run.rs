//! The conversation with the caller: `WAITING`, `READY`, `CLEAN`.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use leakcheck_sys::{default_signal, signal_fd};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};

use crate::cli::Job;
use crate::error::{Doing, Result};
use crate::stage::{Stage, Undo};

/// Makes the plant, notifies the caller, and cleans up on request.
pub(crate) fn run(job: &Job) -> Result<()> {
    let mut caller = Caller::new()?;
    let mut stage = Stage::new(&job.dir, job.cgroup.as_deref());
    let plant = (job.entry.plant.prepare)(&mut stage)?;
    if job.hold {
        let reported = caller.report("WAITING", Some(&json!({"pid": std::process::id()})));
        if reported == Next::Stop || caller.wait()? == Next::Stop {
            return stage.scaffold().run();
        }
    }

    let mut undo = Undo::default();
    let mut facts = plant(&mut undo)?;
    facts["kind"] = json!(job.entry.kind);
    let mut next = caller.report("READY", Some(&facts));
    if next == Next::GoOn {
        next = caller.wait()?;
    }
    undo.run()?;

    if !job.hold {
        stage.scaffold().run()?;
    }
    let reported = caller.report("CLEAN", None);
    if job.hold && next == Next::GoOn && reported == Next::GoOn {
        caller.wait()?;
    }
    stage.scaffold().run()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    GoOn,
    /// The caller closed stdin, or a signal requests the end.
    Stop,
}

/// The caller's two channels: stdin, and the signals that request the end.
struct Caller {
    signals: OwnedFd,
    unread: Vec<u8>,
}

impl Caller {
    fn new() -> Result<Self> {
        let signals = signal_fd(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP]).during("signalfd")?;
        // With an inherited SIG_IGN, the kernel would reap our children (sigaction(2), SA_NOCLDWAIT); another process could
        // then get a child's pid before we signal it.
        default_signal(libc::SIGCHLD);
        Ok(Self { signals, unread: Vec::new() })
    }

    fn report(&self, word: &str, facts: Option<&Value>) -> Next {
        let line = facts.map_or_else(|| format!("{word}\n"), |facts| format!("{word} {facts}\n"));
        let mut out = io::stdout();
        match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => Next::GoOn,
            Err(_) => Next::Stop,
        }
    }

    /// Waits for a line. Bytes after it are kept for the next wait.
    fn wait(&mut self) -> Result<Next> {
        loop {
            if let Some(end) = self.unread.iter().position(|&byte| byte == b'\n') {
                self.unread.drain(..=end);
                return Ok(Next::GoOn);
            }
            let stdin = io::stdin();
            let mut ends =
                [PollFd::new(&self.signals, PollFlags::IN), PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN)];
            poll(&mut ends, None).during("poll stdin")?;
            if !ends[0].revents().is_empty() {
                return Ok(Next::Stop);
            }
            let mut bytes = [0; 256];
            match rustix::io::read(stdin.as_fd(), &mut bytes) {
                Ok(0) => return Ok(Next::Stop),
                Ok(length) => self.unread.extend_from_slice(&bytes[..length]),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(error) => return Err(error).during("read stdin"),
            }
            // Without a newline, the buffer must not grow without bound.
            if self.unread.len() > 4096 {
                self.unread.clear();
            }
        }
    }
}
