//! An arena that is observed repeatedly: its initial contents, and the results of earlier looks.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::born::Born;
use super::bound::Bound;
use super::calls::{self, Calls};
use super::mount::MountCache;
use super::mount_table::InitTable;
use super::ns_cache::NsCache;
use super::overlay::OverlayCache;
use super::proc_root::ProcRoot;
use super::proc_root::read_file;
use super::walk::{device_of, stat, type_of};
use crate::arena::ArenaView;
use crate::error::{Error, Result};
use crate::parse::mountinfo;
use crate::resource::encode_device;

/// An arena and what is known about it.
pub struct ObservedArena {
    /// Its descriptors and paths.
    pub view: ArenaView,
    /// The host's files that are writable in it.
    pub(super) bound: Vec<Bound>,
    /// What its processes created outside the arena, or why that is not known.
    pub(crate) calls: std::result::Result<Calls, String>,
    /// Devices that the host has mounted too: a lock there may not be the arena's.
    pub(super) host_devices: HashSet<u64>,
    /// The types of the fresh file systems by device: the view holds each, so that its number is not reused.
    pub(super) types: HashMap<u64, u64>,
    /// Devices of the mounts that PID 1 had at first.
    pub(super) first_devices: HashSet<u64>,
    /// What the fresh file systems and its cgroups had at first.
    pub(super) born: Born,
    /// Results of comparing files with the lower layer.
    overlay: Mutex<OverlayCache>,
    /// Handles of the namespaces of PID 1.
    ns: Mutex<NsCache>,
    /// The mounts of PID 1's mount namespace, until it changes.
    pub(super) mounts: MountCache,
    /// Ids of the namespaces that PID 1 is in, by inode: it stays in them, so neither is reused.
    namespaces: Mutex<HashMap<u64, u64>>,
    pub(super) table: InitTable,
    /// How many files the last look found.
    pub(super) files: AtomicUsize,
    /// The procfs of the last look. The next one uses it if no mount has changed.
    proc: Mutex<Arc<ProcRoot>>,
}

impl ObservedArena {
    /// For an arena in which nothing has run yet: its current contents are its initial ones.
    ///
    /// # Errors
    /// [`Error::Io`] when the host's own mounts cannot be read.
    pub fn new(view: ArenaView) -> Result<Self> {
        // One procfs for everything that is read here.
        let proc = Mutex::new(ProcRoot::renew()?);
        let text = read_file("/proc/self/mountinfo")?;
        let mounts = mountinfo::parse(&text).map_err(|e| Error::usage(format!("/proc/self/mountinfo: {e}")))?;
        let table = read_file(format!("{}/1/mountinfo", view.proc_path()))?;
        let first = mountinfo::parse(&table).map_err(|e| Error::usage(format!("the arena's mountinfo: {e}")))?;
        let devices =
            |mounts: &[mountinfo::Mount<'_>]| mounts.iter().map(|m| encode_device(m.major, m.minor)).collect();
        let types = view.roots.iter().filter_map(|(_, root)| Some((device_of(&stat(root, c"").ok()?), type_of(root))));
        Ok(ObservedArena {
            types: types.collect(),
            bound: Vec::new(),
            calls: Calls::of(&view.cgroups, &calls::cgroups_of_init(&view.proc)),
            host_devices: devices(&mounts),
            first_devices: devices(&first),
            born: Born::now(&view.roots, &inside(&view.cgroups, &mounts), (&first, &table)),
            overlay: Mutex::default(),
            ns: Mutex::default(),
            mounts: MountCache::default(),
            namespaces: Mutex::default(),
            table: InitTable::default(),
            files: AtomicUsize::new(0),
            proc,
            view,
        })
    }

    /// Also observes writable bind mounts: pairs of the path inside and the path on the host. Each is listed now. Later
    /// changes and deletions are reported, and new files are counted (gauge `bound_new_files`).
    ///
    /// # Errors
    /// [`Error::Io`] when one cannot be opened.
    pub fn with_bound(mut self, binds: Vec<(PathBuf, PathBuf)>) -> Result<Self> {
        self.bound = binds.into_iter().map(|(path, source)| Bound::new(path, &source)).collect::<Result<_>>()?;
        Ok(self)
    }

    /// Forgets what holds for one look only, and keeps its procfs for the next one.
    pub(super) fn begin_look(&self, proc: &Arc<ProcRoot>) {
        self.table.forget();
        *lock(&self.proc) = Arc::clone(proc);
    }

    pub(super) fn ns(&self) -> MutexGuard<'_, NsCache> {
        lock(&self.ns)
    }

    pub(super) fn overlay(&self) -> MutexGuard<'_, OverlayCache> {
        lock(&self.overlay)
    }

    pub(super) fn namespaces(&self) -> MutexGuard<'_, HashMap<u64, u64>> {
        lock(&self.namespaces)
    }
}

fn lock<T>(kept: &Mutex<T>) -> MutexGuard<'_, T> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
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

impl fmt::Debug for ObservedArena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.view.fmt(f)
    }
}
