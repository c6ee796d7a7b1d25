//! A disposable host, observed from outside: through descriptors of its `/proc`, of its overlay's layers and of its
//! fresh tmpfs.
//!
//! The creator of the arena passes the descriptors; nothing here enters its mount or pid namespace.

use std::fmt::{self, Display};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// An overlay of the arena.
#[derive(Debug)]
pub struct Layer {
    /// Where the overlay is mounted inside.
    pub path: PathBuf,
    /// Root of its upper layer.
    pub upper: OwnedFd,
    /// The host's directory that is its lower layer, without other file systems mounted below it.
    pub lower: PathBuf,
}

/// The descriptors and paths through which an arena is observed.
pub struct ArenaView {
    /// The arena's own `/proc`, with the arena's pids.
    pub proc: OwnedFd,
    /// Its overlays.
    pub layers: Vec<Layer>,
    /// Path inside and root of each fresh file system; after these, path and directory of what mounts cover in them.
    pub roots: Vec<(PathBuf, OwnedFd)>,
    /// Hierarchy, named as in [`Cgroup`](crate::resource::Cgroup), and the arena's own cgroup in it, a directory of the host.
    pub cgroups: Vec<(String, PathBuf)>,
    /// Submounts of the host that are in no layer and no root, with the reason.
    pub not_covered: Vec<String>,
}

impl ArenaView {
    /// Its `/proc` as a path, for rare lookups.
    pub(crate) fn proc_path(&self) -> String {
        format!("/proc/self/fd/{}", self.proc.as_raw_fd())
    }

    /// The root directory of PID 1.
    pub(crate) fn root(&self) -> rustix::io::Result<OwnedFd> {
        let place = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.proc, c"1/root", place, Mode::empty())
    }

    /// Whether PID 1 lives: everything in the arena ends with it, once it has no root any more (`do_exit` in kernel/exit.c).
    ///
    /// # Errors
    /// [`Error::Io`] that names the arena's `/proc` if PID 1 is ending, or has ended.
    pub(crate) fn check(&self) -> Result<()> {
        match rustix::fs::readlinkat(&self.proc, c"1/root", Vec::new()) {
            // Another user's, not that of an arena of ours.
            Ok(_) | Err(Errno::ACCESS) => Ok(()),
            Err(e) => {
                Err(Error::io("find PID 1 of the arena in", "/proc", if e == Errno::NOENT { Errno::SRCH } else { e }))
            }
        }
    }
}

impl fmt::Debug for ArenaView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roots: Vec<&PathBuf> = self.roots.iter().map(|(path, _)| path).collect();
        f.debug_struct("ArenaView").field("layers", &self.layers).field("roots", &roots).finish_non_exhaustive()
    }
}

/// A path below the `/proc` of an arena, or of the host.
pub(crate) fn proc_path(arena: Option<&ArenaView>, below: impl Display) -> PathBuf {
    match arena {
        None => format!("/proc/{below}").into(),
        Some(arena) => format!("{}/{below}", arena.proc_path()).into(),
    }
}
