//! What the watch says: who belongs to the run, and how far that can be trusted.

use std::path::PathBuf;

use crate::membership::Membership;
use crate::snapshot::Coverage;

/// Who made something: a process id, which may be reused by now, and whether that process belonged to the run when it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Maker {
    /// The thread group, numbered as in our pid namespace; 0 if it is not visible there.
    pub pid: u32,
    /// Whether it belonged to the run.
    pub membership: Membership,
}

/// How much each event source saw, see [`Watch::levels`](super::Watch::levels). A source that lost events is partial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Levels {
    /// Who forked whom. Partial where `/proc` stands in for the process connector.
    pub descent: Coverage,
    /// Who made which directory entry: one for each path of [`Options::files`](super::Options::files), in that order.
    pub files: Vec<(PathBuf, Coverage)>,
    /// Who attached which mount in this mount namespace.
    pub mounts: Coverage,
}
