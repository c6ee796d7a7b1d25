//! A disposable host, seen from outside: through descriptors of its `/proc`, of its overlay's layers and of its fresh tmpfs.
//!
//! Whoever made the arena hands the descriptors over; nothing here enters its mount or pid namespace.

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
    /// The host's directory that is its lower layer; other file systems that are mounted below it are not.
    pub lower: PathBuf,
}

/// What an arena is seen through.
pub struct ArenaView {
    /// The arena's own `/proc`: its pids are the arena's.
    pub proc: OwnedFd,
    /// Its overlays.
    pub layers: Vec<Layer>,
    /// Path inside and root of each fresh file system.
    pub roots: Vec<(PathBuf, OwnedFd)>,
    /// Hierarchy, named as in [`Cgroup`](crate::resource::Cgroup), and the arena's own cgroup in it, a directory of the host.
    pub cgroups: Vec<(String, PathBuf)>,
    /// Submounts of the host that neither a layer nor a root shows, with the reason.
    pub not_covered: Vec<String>,
}

impl ArenaView {
    /// Its `/proc` as a path, for what is looked up rarely.
    pub(crate) fn proc_path(&self) -> String {
        format!("/proc/self/fd/{}", self.proc.as_raw_fd())
    }

    /// The root directory of PID 1.
    pub(crate) fn root(&self) -> rustix::io::Result<OwnedFd> {
        let place = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.proc, c"1/root", place, Mode::empty())
    }

    /// Whether PID 1 lives: with it goes all that the arena has.
    ///
    /// # Errors
    /// [`Error::Io`] that names the arena's `/proc` when it is gone.
    pub(crate) fn check(&self) -> Result<()> {
        let stat = rustix::fs::openat(&self.proc, c"1/stat", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        stat.map(drop).map_err(|e| {
            Error::io("find PID 1 of the arena in", "/proc", if e == Errno::NOENT { Errno::SRCH } else { e })
        })
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
