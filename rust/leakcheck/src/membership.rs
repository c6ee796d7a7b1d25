//! Whether something belongs to the run, as far as the watch knows.

/// Whether a process belongs to the watched run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Membership {
    /// It is the root process, or descends from it through a process that was forked after the start.
    Run,
    /// It does not.
    Stranger,
    /// The evidence allows both answers.
    Unknown,
}

impl Membership {
    /// Combines two observations of the same thing: if they differ, the result is unknown.
    pub(crate) fn agree(self, other: Membership) -> Membership {
        if self == other { self } else { Membership::Unknown }
    }
}
