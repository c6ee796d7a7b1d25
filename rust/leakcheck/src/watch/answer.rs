//! The results of the watch: what belongs to the run, and how reliable that is.

use std::path::PathBuf;

use crate::membership::Membership;
use crate::snapshot::Coverage;

/// The maker of something: a process id, which may be reused by now, and whether that process belonged to the run at
/// the time.
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
    /// Which process forked which. Partial if `/proc` replaces the process connector.
    pub descent: Coverage,
    /// Which process made which directory entry: one for each path of [`Options::files`](super::Options::files), in
    /// that order.
    pub files: Vec<(PathBuf, Coverage)>,
    /// Which process attached which mount in this mount namespace.
    pub mounts: Coverage,
}
