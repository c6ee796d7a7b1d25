//! A watch that the guards of a session hand on. To open its sources, to close them and to start its thread takes longer
//! than a look.
//!
//! It begins again for each guard ([`Watch::restart`]), and is handed on only while it would be opened in the same way:
//! same kinds and roots, and the same mounts (by the numbers that the kernel never gives again), mount points, namespaces
//! and root directories. Whether that holds is seen after the baseline; if not, a new watch starts, and with it a new
//! baseline.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::kind::{Kind, KindSet};
use crate::observe;
use crate::parse::nslink::NsType;
use crate::snapshot::{Directory, Snapshot};
use crate::watch::Watch;

/// Where a session's guards leave the watch for the next one. Clones share it.
#[derive(Clone, Default)]
pub struct KeptWatch(Arc<Mutex<Slot>>);

#[derive(Default)]
enum Slot {
    #[default]
    Empty,
    /// A guard has it, or will leave one. A guard that begins meanwhile starts its own, and leaves none: the first one
    /// would see the descriptors of that.
    Lent,
    Kept(Watch, Box<Place>),
}

impl fmt::Debug for KeptWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeptWatch")
    }
}

/// What decides which file systems and mounts a watch watches.
#[derive(PartialEq)]
pub(super) struct Place {
    kinds: KindSet,
    roots: Vec<PathBuf>,
    mounts: MountsHere,
    namespaces: BTreeMap<NsType, u64>,
    directories: Vec<Option<Directory>>,
}

/// The mounts of this process, and where they are.
#[derive(PartialEq)]
pub(super) struct MountsHere {
    numbers: HashSet<u64>,
    points: Vec<u8>,
}

impl MountsHere {
    /// None without numbers of mounts that are never reused (Linux 6.8).
    pub(super) fn now() -> Option<MountsHere> {
        let numbers = observe::lasting_mount_numbers()?;
        Some(MountsHere { numbers, points: observe::read_file("/proc/thread-self/mountinfo").ok()? })
    }
}

impl Place {
    /// As a baseline saw it, with `mounts`: those from before the watch opened its sources, or from after the baseline of
    /// a watch that began again. So a mount that came in between makes a difference. None if it cannot be compared, without
    /// a look at the roots.
    pub(super) fn of(baseline: &Snapshot, roots: &[PathBuf], mounts: MountsHere) -> Option<Place> {
        let of_roots = [Kind::Ipc, Kind::Lockfile, Kind::Loop, Kind::Net];
        if baseline.kinds.any(&of_roots) && !baseline.kinds.contains(Kind::File) || !baseline.lock_paths.is_empty() {
            return None;
        }
        Some(Place {
            kinds: baseline.kinds,
            roots: roots.to_vec(),
            mounts,
            namespaces: baseline.own_ns.clone(),
            directories: baseline.root_directories.clone(),
        })
    }
}

/// The right to leave a watch.
pub(super) struct Lent {
    slot: KeptWatch,
    /// Of the watch that is to be left.
    pub(super) place: Option<Place>,
}

impl KeptWatch {
    /// The watch, as if it had just been started, with its place; none if there is none that can begin again. `Lent` if the
    /// caller is to leave one.
    pub(super) fn take(&self) -> (Option<(Watch, Place)>, Option<Lent>) {
        let before = std::mem::replace(&mut *self.lock(), Slot::Lent);
        let lent = || Some(Lent { slot: self.clone(), place: None });
        match before {
            Slot::Lent => (None, None),
            Slot::Empty => (None, lent()),
            Slot::Kept(watch, place) => (watch.restart().map(|watch| (watch, *place)), lent()),
        }
    }

    /// Closes what is kept.
    pub fn close(&self) {
        let mut slot = self.lock();
        if matches!(*slot, Slot::Kept(..)) {
            *slot = Slot::Empty;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lent {
    /// Leaves the watch for the next guard, or closes it if another place could not be told from this one.
    pub(super) fn leave(mut self, watch: Watch) {
        if let Some(place) = self.place.take() {
            *self.slot.lock() = Slot::Kept(watch, Box::new(place));
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut slot = self.slot.lock();
        if matches!(*slot, Slot::Lent) {
            *slot = Slot::Empty;
        }
    }
}
