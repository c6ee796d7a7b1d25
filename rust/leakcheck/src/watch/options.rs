//! What to watch.

use std::path::PathBuf;

/// What to watch.
#[derive(Debug, Clone)]
pub struct Options {
    /// The run is this process and every process that it forks from now on, with all their descendants.
    pub root: u32,
    /// Whole filesystems, each named by any path on it. A filesystem mounted below a path is a separate one.
    pub files: Vec<PathBuf>,
    /// Whether to watch the caller's mount namespace.
    pub mounts: bool,
}

impl Default for Options {
    /// The calling process, no filesystem, no mounts.
    fn default() -> Self {
        Options { root: std::process::id(), files: Vec::new(), mounts: false }
    }
}
