//! What the supervisor gives to process 1 and to the payload.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use seccompiler::BpfProgram;

use crate::cgroup::Entrances;
use crate::limits::Limits;
use crate::root::Layout;

/// What to run, and where.
pub(crate) struct Job {
    pub(crate) argv: Vec<CString>,
    pub(crate) env: Vec<CString>,
    pub(crate) limits: Limits,
    pub(crate) layout: Layout,
    pub(crate) filter: BpfProgram,
    /// Limits that no cgroup enforces.
    pub(crate) rlimit_memory: bool,
    pub(crate) rlimit_processes: bool,
    /// Whether to keep the files that the payload leaves in its directory.
    pub(crate) pack: bool,
}

/// The descriptors of a box's first processes.
pub(crate) struct Wires {
    pub(crate) report: OwnedFd,
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    /// The supervisor's pidfd.
    pub(crate) supervisor: OwnedFd,
    /// In a user namespace: closes as soon as the users are mapped.
    pub(crate) mapped: Option<OwnedFd>,
    pub(crate) entrances: Entrances,
    /// A compiler's files, which one execution passes to the next.
    pub(crate) archive: Option<OwnedFd>,
}

impl Wires {
    /// All of them.
    pub(crate) fn all(&self) -> Vec<BorrowedFd<'_>> {
        let some = [&self.report, &self.stdin, &self.stdout, &self.stderr, &self.supervisor];
        let all = some.into_iter().chain(&self.mapped).chain(&self.archive);
        all.chain(&self.entrances.tasks).chain(&self.entrances.clone_target).map(AsFd::as_fd).collect()
    }
}
