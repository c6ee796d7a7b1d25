//! Whose something is, as whoever followed the run can tell.

/// Whether a process belongs to the watched run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Membership {
    /// It is the root process, or descends from it by a process that was forked after the start.
    Run,
    /// It does not.
    Stranger,
    /// What was seen allows both answers.
    Unknown,
}

impl Membership {
    /// What holds when two observations speak of the same thing: anything but agreement is unknown.
    pub(crate) fn agree(self, other: Membership) -> Membership {
        if self == other { self } else { Membership::Unknown }
    }
}
