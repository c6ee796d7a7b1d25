//! What reap does about a resource, and what comes of it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::judge::report::Leak;
use crate::kind::Kind;

/// The operation on a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// `SIGKILL` through a pidfd (pidfd_send_signal(2)).
    Kill,
    /// umount2(2) with `MNT_DETACH`.
    Unmount,
    /// A directory of a cgroup hierarchy (rmdir(2)).
    Rmdir,
    /// A name in a file system (unlinkat(2)).
    Unlink,
    /// A kernel object with an id: SysV IPC (`IPC_RMID`), a message queue, an interface, a key.
    Remove,
    /// The backing file of a loop device (`LOOP_CLR_FD`).
    Detach,
    /// Nothing.
    None,
}

/// The result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It exists and is the one in the report: it would be removed.
    Would,
    /// It was removed.
    Done,
    /// It no longer exists, or something else is in its place.
    Gone,
    /// It is deliberately left alone.
    Skipped,
    /// It still exists and should not.
    Failed,
}

macro_rules! named {
    ($type:ty: $($variant:ident $name:literal),+) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$variant => $name),+ })
            }
        }
    };
}
named!(Verb: Kill "kill", Unmount "unmount", Rmdir "rmdir", Unlink "unlink", Remove "remove", Detach "detach", None "none");
named!(Status: Would "would", Done "done", Gone "gone", Skipped "skipped", Failed "failed");

/// One resource of the report, and what reap did about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// The kind.
    pub kind: Kind,
    /// Its label in the report.
    pub label: String,
    /// Its identity in the report.
    pub key: String,
    /// The operation on such a resource.
    pub action: Verb,
    /// What came of it.
    pub status: Status,
    /// The reason, or what to do; empty when there is nothing to add.
    pub why: String,
}

/// [`Action`] without the fields from the report.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) verb: Verb,
    pub(super) status: Status,
    pub(super) why: String,
}

impl Outcome {
    pub(super) fn new(verb: Verb, status: Status, why: impl Into<String>) -> Self {
        Outcome { verb, status, why: why.into() }
    }

    pub(super) fn gone(verb: Verb) -> Self {
        Self::new(verb, Status::Gone, "it no longer exists")
    }

    pub(super) fn replaced(verb: Verb) -> Self {
        Self::new(verb, Status::Gone, "it was replaced: another one is there now")
    }

    pub(super) fn skipped(verb: Verb, why: impl Into<String>) -> Self {
        Self::new(verb, Status::Skipped, why)
    }

    pub(super) fn failed(verb: Verb, operation: &str, error: impl Into<std::io::Error>) -> Self {
        Self::new(verb, Status::Failed, format!("{operation}: {}", error.into()))
    }

    /// Removes a verified resource, or reports that it would be removed.
    pub(super) fn act<E: Into<std::io::Error>>(
        verb: Verb,
        apply: bool,
        operation: &str,
        remove: impl FnOnce() -> std::result::Result<(), E>,
    ) -> Self {
        if !apply {
            return Self::new(verb, Status::Would, "");
        }
        match remove() {
            Ok(()) => Self::new(verb, Status::Done, ""),
            Err(e) => Self::failed(verb, operation, e),
        }
    }

    /// Whether nothing of it remains, or would remain.
    pub(super) fn leaves_nothing(&self) -> bool {
        matches!(self.status, Status::Would | Status::Done | Status::Gone)
    }

    pub(super) fn of(self, leak: &Leak) -> Action {
        let Outcome { verb, status, why } = self;
        Action { kind: leak.kind, label: leak.label.clone(), key: leak.key.clone(), action: verb, status, why }
    }
}
