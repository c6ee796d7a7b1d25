//! A disposable host, seen from outside: through descriptors of its `/proc`, of its overlay's layers and of its fresh tmpfs.
//!
//! Whoever made the arena hands the descriptors over; nothing here enters its mount or pid namespace.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fmt::{self, Display};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::observe::calls::{self, Calls};
use crate::observe::door::Door;
use crate::observe::{Born, Bound, Doors, Judged, Listed};
use crate::parse::mountinfo;
use crate::resource::encode_device;

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
    /// What of the host can be written in it.
    pub(crate) bound: Vec<Bound>,
    /// Hierarchy, named as in [`Cgroup`](crate::resource::Cgroup), and the arena's own cgroup in it, a directory of the host.
    pub cgroups: Vec<(String, PathBuf)>,
    /// Submounts of the host that neither a layer nor a root shows, with the reason.
    pub not_covered: Vec<String>,
    /// What its processes did that stays outside of it, or why nobody can tell.
    pub(crate) calls: std::result::Result<Calls, String>,
    /// Devices that the host has mounted too: a lock there need not be the arena's.
    host_devices: HashSet<u64>,
    /// Devices of the mounts that PID 1 had at first.
    pub(crate) first_devices: HashSet<u64>,
    /// What the fresh file systems and its cgroups had at first.
    pub(crate) born: Born,
    /// What comparing files with the lower layer gave.
    judged: Mutex<Judged>,
    /// Into the namespaces of PID 1.
    doors: Mutex<Doors>,
    /// What PID 1's mount namespace had, until it changed.
    pub(crate) mounts: Mutex<Option<Listed>>,
    /// Ids of the namespaces that PID 1 is in, by inode: it stays in them, so neither is reused.
    pub(crate) namespaces: Mutex<HashMap<u64, u64>>,
}

impl ArenaView {
    /// Takes the descriptors, of an arena in which nothing was run yet: what it has now is what it came up with.
    ///
    /// # Errors
    /// [`Error::Io`] when the host's own mounts cannot be read.
    pub fn new(
        proc: OwnedFd,
        layers: Vec<Layer>,
        roots: Vec<(PathBuf, OwnedFd)>,
        cgroups: Vec<(String, PathBuf)>,
        not_covered: Vec<String>,
    ) -> Result<Self> {
        // One door for all that is read here.
        let _door = Door::renew()?;
        let text = crate::observe::read_file("/proc/self/mountinfo")?;
        let mounts = mountinfo::parse(&text).map_err(|e| Error::usage(format!("/proc/self/mountinfo: {e}")))?;
        let host_devices = mounts.iter().map(|m| encode_device(m.major, m.minor)).collect();
        let first = crate::observe::read_file(format!("/proc/self/fd/{}/1/mountinfo", proc.as_raw_fd()))?;
        let first = mountinfo::parse(&first).map_err(|e| Error::usage(format!("the arena's mountinfo: {e}")))?;
        let born = Born::now(&roots, &inside(&cgroups, &mounts), &first);
        let (judged, doors, mounts, namespaces) = Default::default();
        let bound = Vec::new();
        let first_devices = first.iter().map(|m| encode_device(m.major, m.minor)).collect();
        let calls = Calls::of(&cgroups, &calls::cgroups_of_init(&proc));
        Ok(ArenaView {
            proc,
            layers,
            roots,
            bound,
            calls,
            cgroups,
            not_covered,
            host_devices,
            first_devices,
            born,
            judged,
            doors,
            mounts,
            namespaces,
        })
    }

    /// Also looks at what is bound into it and can be written there: pairs of the path inside and that on the host. Each is
    /// listed now; what is changed or deleted in it from now on is told, and what is new counted (gauge `bound_new_files`).
    ///
    /// # Errors
    /// [`Error::Io`] when one cannot be opened.
    pub fn with_bound(mut self, binds: Vec<(PathBuf, PathBuf)>) -> Result<Self> {
        self.bound = binds.into_iter().map(|(path, source)| Bound::new(path, &source)).collect::<Result<_>>()?;
        Ok(self)
    }

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

    pub(crate) fn is_host_device(&self, dev: u64) -> bool {
        self.host_devices.contains(&dev)
    }

    pub(crate) fn doors(&self) -> MutexGuard<'_, Doors> {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn judged(&self) -> MutexGuard<'_, Judged> {
        self.judged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hierarchy, directory on the host, and where the hierarchy is mounted, which is the same place inside.
fn inside(cgroups: &[(String, PathBuf)], mounts: &[mountinfo::Mount<'_>]) -> Vec<(String, PathBuf, PathBuf)> {
    let place = |dir: &Path| {
        let points = mounts.iter().filter(|m| m.fs_type.starts_with(b"cgroup"));
        let points =
            points.map(|m| Path::new(OsStr::from_bytes(&m.mount_point))).filter(|point| dir.starts_with(point));
        points.max_by_key(|point| point.as_os_str().len()).unwrap_or(dir).to_owned()
    };
    cgroups.iter().map(|(name, dir)| (name.clone(), dir.clone(), place(dir))).collect()
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
