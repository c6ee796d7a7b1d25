//! How a command is traced, as the owner asks for it.

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::fault::{CallFault, is_watched};
use super::points::Point;
use super::x86_64::EVERY;

/// The operation of a fault that happens once the watched files have changed.
const CHANGE: &str = "change";

/// How a command is traced.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    /// The name of the command's own role: its number among the commands of its stage.
    pub(super) root: u32,
    /// The arguments of the payload, by which its execve is recognised.
    pub(super) payload: Vec<String>,
    /// The only CPU on which the command and the tracer run from now on.
    pub(crate) cpu: Option<usize>,
    /// Whether its filter reports its calls, instead of ptrace.
    #[serde(default)]
    pub(crate) notified: bool,
    /// Who is killed at which point; without it, and without `faults`, all points are recorded.
    pub(super) fault: Option<Fault>,
    /// What happens to which calls.
    #[serde(default)]
    pub(super) faults: Vec<CallFault>,
    /// Whether the calls that no filter stops at are recorded, too.
    #[serde(default)]
    watched: bool,
    /// Whether writes and messages are recorded, too.
    #[serde(default)]
    every: bool,
    /// Whether the points are recorded with their calls, with or without a fault.
    #[serde(default)]
    pub(super) explain: bool,
    /// Where the command waits until the owner lets it go on.
    #[serde(default)]
    pub(super) hold: Vec<Instant>,
    /// Directories of the arena whose files are recorded whenever they change.
    #[serde(default)]
    pub(super) files: Vec<String>,
}

/// An instant at which a command can wait for its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Instant {
    /// It has executed its program, which has not run yet.
    Start,
    /// So has the payload.
    Payload,
    /// The payload is about to end.
    End,
}

impl Request {
    /// Whether writes and messages are points: a fault may be at one.
    pub(crate) fn every(&self) -> bool {
        self.every
            || !self.files.is_empty()
            || self.operations().any(|operation| EVERY.iter().any(|row| row.operation == operation))
    }

    /// Whether the run stops at each call, since no filter does at some points.
    pub(super) fn watches(&self) -> bool {
        !self.notified && (self.watched || self.operations().any(is_watched))
    }

    /// Whether it waits for the owner at any instant.
    pub(crate) fn holds(&self) -> bool {
        !self.hold.is_empty()
    }

    pub(super) fn records(&self) -> bool {
        self.fault.is_none() && self.faults.is_empty()
    }

    fn operations(&self) -> impl Iterator<Item = &str> {
        let kill = self.fault.iter().map(|fault| &*fault.operation);
        kill.chain(self.faults.iter().map(|fault| &*fault.operation))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fault {
    pub(super) role: String,
    pub(super) operation: String,
    pub(super) class: String,
    pub(super) ordinal: u32,
    pub(super) after: bool,
    pub(super) victim: Victim,
    pub(super) signal: Sent,
    /// Whether the point waits until all other processes of the run block.
    pub(super) quiesced: bool,
}

impl Fault {
    /// Whether it happens once the files that are watched have changed this often.
    pub(super) fn is_after_change(&self, count: u32) -> bool {
        self.operation == CHANGE && self.ordinal == count
    }

    pub(super) fn is_at(&self, role: &str, point: &Point, ordinal: u32) -> bool {
        self.ordinal == ordinal && self.operation == point.operation && self.class == point.class && self.role == role
    }
}

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Victim {
    /// The command itself; once it has ended, the process at the point.
    Supervisor,
    /// The process at the point.
    Helper,
    /// All but the payload.
    All,
    /// All, the payload too.
    Tree,
    /// All, the payload too, stopped first.
    Freeze,
}

/// What those who are killed get.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) enum Sent {
    #[serde(rename = "SIGKILL")]
    Kill,
    #[serde(rename = "SIGTERM")]
    Term,
    #[serde(rename = "SIGINT")]
    Int,
    #[serde(rename = "SIGHUP")]
    Hup,
    /// They can be continued.
    #[serde(rename = "SIGSTOP")]
    Stop,
}

impl Sent {
    pub(super) fn signal(self) -> Signal {
        match self {
            Sent::Kill => Signal::KILL,
            Sent::Term => Signal::TERM,
            Sent::Int => Signal::INT,
            Sent::Hup => Signal::HUP,
            Sent::Stop => Signal::STOP,
        }
    }
}
