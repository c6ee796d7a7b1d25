//! Settings whose files stay open from one look to the next.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::resource::Sysctl;
use crate::text::Text;

/// The files of the settings that a guard's baseline read. Its later looks read the same files again, which takes a fifth of
/// the time: a setting that appears with a module or a device has nothing to be compared with, and no path leads to
/// another file meanwhile.
#[derive(Debug, Default)]
pub struct OpenSettings {
    pub(super) files: OnceLock<Vec<(Text, OwnedFd)>>,
    /// What was read in advance, and when; and how many settings were refused.
    first: Mutex<Option<(Instant, Vec<Sysctl>, usize)>>,
}

/// What was read in advance, for the next guard of an arena.
static PREPARED: Mutex<Weak<OpenSettings>> = Mutex::new(Weak::new());
/// After this time, what was read in advance is read again.
const FRESH: Duration = Duration::from_secs(1);

impl OpenSettings {
    /// Those that were read in advance, or new ones.
    pub(crate) fn take() -> Arc<Self> {
        lock(&PREPARED).upgrade().filter(|open| open.files.get().is_some()).unwrap_or_default()
    }

    /// Offers what was just read to the next guard.
    pub(super) fn offer(self: &Arc<Self>, found: Vec<Sysctl>, refused: usize) {
        *lock(&self.first) = Some((Instant::now(), found, refused));
        *lock(&PREPARED) = Arc::downgrade(self);
    }

    /// What was read in advance, once and if it is recent.
    pub(super) fn first(&self) -> Option<(Vec<Sysctl>, usize)> {
        let (at, found, refused) = lock(&self.first).take()?;
        (at.elapsed() < FRESH).then_some((found, refused))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
