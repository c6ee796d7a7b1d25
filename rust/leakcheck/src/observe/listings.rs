//! What earlier looks listed, so that a directory is listed again only if its entries may have changed.
//!
//! Whoever changes the entries of a directory sets its change time to the time of the change, and nobody can set it to
//! another time (inode(7), utimensat(2)). The clock of file systems stands still for up to one tick, so a listing is
//! kept only if the directory was older than that when the listing began. A mount changes no time: each look compares
//! the mount table.
//!
//! What is kept are the identities of files and their paths. Mode, owner and size may have changed since; therefore a
//! run's looks list every directory again that was listed since the run began.
//!
//! The clock must not be set back to the exact nanosecond of an earlier change.
//!
//! A session of many looks watches the directories too ([`Changes`]). A tree that is complete and watched, and of which
//! no event came, is passed over as a whole.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fmt;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::fs::{Statx, StatxFlags};

use super::changes::Changes;
use super::walk::{device_of, join};
use crate::resource::{File, Files};

/// A clock tick is at most 10 ms (`CONFIG_HZ=100`); twice that, since two clocks are compared.
const TICKS: i64 = 20_000_000;
/// `f_type` (statfs(2)) of file systems whose times are exact if they have birth times: ext4, XFS, Btrfs, tmpfs,
/// overlay.
const EXACT: [u64; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630];

/// What looks remember of each other. Clones share it.
#[derive(Clone, Default)]
pub struct Remembered {
    listings: Arc<Mutex<Listings>>,
    /// When the run began whose looks these are.
    run: Option<Instant>,
}

impl fmt::Debug for Remembered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remembered")
    }
}

impl Remembered {
    /// For one look, after which nothing is remembered.
    pub fn nothing() -> Self {
        let listings = Listings { is_last: true, ..Listings::default() };
        Remembered { listings: Arc::new(Mutex::new(listings)), run: None }
    }

    /// For many looks: directories are watched.
    pub fn watching() -> Self {
        let listings = Listings { is_watching: true, ..Listings::default() };
        Remembered { listings: Arc::new(Mutex::new(listings)), run: None }
    }

    /// The descriptor of this process that is the observer's, open from now on.
    pub(super) fn own_fd(&self) -> Option<RawFd> {
        let mut listings = self.lock();
        if !listings.is_watching {
            return None;
        }
        if !listings.changes.as_ref().is_some_and(Changes::is_usable) {
            listings.list_all_again();
            // First the old one: the new one may get its number.
            listings.changes = None;
            listings.changes = Changes::open();
        }
        listings.changes.as_ref().map(Changes::number)
    }

    /// Whether an earlier look listed and watches what the next one needs: its files take little time.
    pub(super) fn is_listed(&self) -> bool {
        let listings = self.lock();
        listings.is_watching && listings.look > 0
    }

    fn lock(&self) -> MutexGuard<'_, Listings> {
        self.listings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, what is new must be described as it is.
    pub(crate) fn begin_run(&mut self) {
        self.run = Some(Instant::now());
    }

    /// Begins a look: with nothing remembered if the mounts changed, or if the last look did not end.
    pub(super) fn look(&self, mounts: Vec<u8>) -> Look<'_> {
        let mut listings = self.lock();
        if mounts.is_empty() || listings.mounts != mounts || listings.is_open {
            let Listings { changes, is_watching, is_last, .. } = std::mem::take(&mut *listings);
            *listings = Listings { mounts, changes, is_watching, is_last, ..Listings::default() };
        }
        listings.is_open = true;
        listings.look += 1;
        listings.take_changes();
        Look { listings, run: self.run, passed_over: HashSet::new() }
    }
}

#[derive(Default)]
struct Listings {
    /// The mount table.
    mounts: Vec<u8>,
    /// The number of the current or last look.
    look: u64,
    /// Whether a look began and has not ended.
    is_open: bool,
    /// By path: the path of a file is part of its record.
    directories: HashMap<Vec<u8>, Listed>,
    /// The path by which each of them was listed.
    places: HashMap<Id, Vec<u8>>,
    /// Where the walk began.
    roots: Vec<Vec<u8>>,
    is_watching: bool,
    /// Whether no other look follows, so that no directory is kept.
    is_last: bool,
    changes: Option<Changes>,
    /// All of them, in the order of [`by_inode`].
    all: Vec<Arc<File>>,
    /// The same with their links numbered, and no file twice.
    numbered: Files,
    /// Changes since then.
    added: Vec<Arc<File>>,
    /// Addresses: those in `all` stay allocated.
    removed: Vec<usize>,
}

impl Listings {
    /// A change in a directory is one in all those above it.
    fn take_changes(&mut self) {
        let Some(changes) = &mut self.changes else { return };
        let Some(changed) = changes.take() else { return self.list_all_again() };
        for path in changed {
            let mut end = path.len();
            loop {
                if let Some(listed) = self.directories.get_mut(&path[..end]) {
                    listed.is_quiet = false;
                }
                match path[..end].iter().rposition(|byte| *byte == b'/') {
                    Some(0) if end > 1 => end = 1,
                    None | Some(0) => break,
                    Some(slash) => end = slash,
                }
            }
        }
    }

    fn list_all_again(&mut self) {
        for listed in self.directories.values_mut() {
            (listed.stamp, listed.watch, listed.is_quiet) = (None, None, false);
        }
    }

    /// Forgets a directory and all below it, except what this look found.
    fn forget(&mut self, path: &[u8]) {
        let mut paths = vec![path.to_vec()];
        while let Some(path) = paths.pop() {
            if self.directories.get(&path).is_none_or(|listed| listed.look == self.look) {
                continue;
            }
            if let Some(listed) = self.directories.remove(&path) {
                paths.extend(listed.below.iter().map(|name| join(&path, name)));
                self.removed.extend(listed.files.iter().map(address));
                self.displaced(&path, &listed.id, listed.watch);
            }
        }
    }

    /// The directory is no longer at this path.
    fn displaced(&mut self, path: &[u8], id: &Id, watch: Option<i32>) {
        if self.places.get(id).is_some_and(|place| place == path) {
            self.places.remove(id);
        }
        if let (Some(watch), Some(changes)) = (watch, &mut self.changes) {
            changes.forget(watch, path);
        }
    }
}

struct Listed {
    id: Id,
    /// None if it must be listed again.
    stamp: Option<Stamp>,
    at: Instant,
    /// The last time that one of its tree was listed.
    last: Instant,
    /// The last look that found it.
    look: u64,
    /// The number of its watch.
    watch: Option<i32>,
    /// Whether all of its tree is here, and watched, and no event came.
    is_quiet: bool,
    /// Whether the look found one directory with this path.
    is_single: bool,
    files: Vec<Arc<File>>,
    below: Arc<[CString]>,
}

/// Device, inode and time of birth.
pub(super) type Id = (u64, u64, (i64, u32));

/// What is different after a change.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    id: Id,
    mtime: (i64, u32),
    ctime: (i64, u32),
    size: u64,
    links: u32,
}

impl Stamp {
    pub(super) fn of(st: &Statx) -> Self {
        let time = |t: &rustix::fs::StatxTimestamp| (t.tv_sec, t.tv_nsec);
        Stamp {
            id: (device_of(st), st.stx_ino, time(&st.stx_btime)),
            mtime: time(&st.stx_mtime),
            ctime: time(&st.stx_ctime),
            size: st.stx_size,
            links: st.stx_nlink,
        }
    }

    pub(super) fn id(&self) -> Id {
        self.id
    }

    /// The stamp of a directory on a file system of this type, whose status was read before its entries; `began` is
    /// the file clock before that. None if a later change might not show.
    pub(super) fn lasting(st: &Statx, f_type: u64, began: i64) -> Option<Self> {
        let stamp = Stamp::of(st);
        let ns = |(s, ns): (i64, u32)| s.saturating_mul(1_000_000_000).saturating_add(ns.into());
        let is_exact = EXACT.contains(&f_type) && st.stx_mask & StatxFlags::BTIME.bits() != 0;
        (is_exact && ns(stamp.ctime) < began - TICKS).then_some(stamp)
    }
}

/// One look.
pub(super) struct Look<'a> {
    listings: MutexGuard<'a, Listings>,
    run: Option<Instant>,
    /// Directories whose trees were passed over.
    passed_over: HashSet<Vec<u8>>,
}

impl Look<'_> {
    /// Whether another look may follow, for which directories are kept.
    pub(super) fn keeps(&self) -> bool {
        !self.listings.is_last
    }

    /// Whether the walk may pass over the tree below a directory: it is as an earlier look listed it.
    pub(super) fn passes_over(&mut self, path: &[u8], stamp: &Stamp) -> bool {
        let (look, run) = (self.listings.look, self.run);
        let Some(listed) = self.listings.directories.get_mut(path) else { return false };
        let is_new = run.is_some_and(|run| listed.last >= run) || listed.look == look;
        if !listed.is_quiet || listed.id != stamp.id || is_new {
            return false;
        }
        listed.look = look;
        self.passed_over.insert(path.to_vec())
    }

    /// Whether a directory is in a tree that was passed over, where it has another path.
    pub(super) fn has_another_path(&self, path: &[u8], stamp: &Stamp) -> bool {
        let place = self.listings.places.get(&stamp.id).filter(|place| *place != path);
        place.is_some_and(|place| self.is_passed_over(place))
    }

    fn is_passed_over(&self, path: &[u8]) -> bool {
        let is_end = |end: &usize| *end == 1 || matches!(path.get(*end), None | Some(b'/'));
        let mut above = (1..=path.len()).filter(is_end);
        !self.passed_over.is_empty() && above.any(|end| self.passed_over.contains(&path[..end]))
    }

    /// The directories in a directory whose entries are as an earlier look listed them.
    pub(super) fn below(&mut self, path: &[u8], stamp: &Stamp) -> Option<Arc<[CString]>> {
        let (look, run) = (self.listings.look, self.run);
        let listed = self.listings.directories.get_mut(path)?;
        if listed.stamp != Some(*stamp) || run.is_some_and(|run| listed.at >= run) || listed.look == look {
            return None;
        }
        listed.look = look;
        Some(Arc::clone(&listed.below))
    }

    /// Watches a directory that is about to be listed. None if it is not watched.
    pub(super) fn watch(&mut self, dir: &OwnedFd, f_type: u64, path: &[u8]) -> Option<i32> {
        self.listings.changes.as_mut()?.watch(dir, f_type, path)
    }

    /// Adds a directory that was listed.
    pub(super) fn add(&mut self, path: &[u8], new: New) {
        let listings = &mut *self.listings;
        if listings.is_last {
            return listings.added.extend(new.files.into_iter().map(Arc::new));
        }
        let old = listings.directories.remove(path);
        // The same path twice in one look leads to two directories, of which one came or went.
        let twice = old.as_ref().is_some_and(|old| old.look == listings.look);
        let (mut files, mut gone) = (Vec::new(), HashSet::new());
        if let Some(old) = old {
            listings.displaced(path, &old.id, old.watch.filter(|watch| Some(*watch) != new.watch));
            gone.extend(old.below.iter().cloned());
            files = old.files;
        }
        let mut known: HashMap<&[u8], &Arc<File>> = files.iter().map(|file| (file.path.as_bytes(), file)).collect();
        let mut kept = Vec::with_capacity(new.files.len());
        for file in new.files {
            match known.get(file.path.as_bytes()).filter(|old| ****old == file) {
                Some(same) => {
                    kept.push(Arc::clone(same));
                    known.remove(file.path.as_bytes());
                }
                None => {
                    let file = Arc::new(file);
                    listings.added.push(Arc::clone(&file));
                    kept.push(file);
                }
            }
        }
        if twice {
            kept.extend(known.into_values().cloned());
        } else {
            listings.removed.extend(known.into_values().map(address));
        }
        let now = Instant::now();
        let listed = Listed {
            id: new.id,
            stamp: new.stamp.filter(|_| !twice),
            at: now,
            last: now,
            look: listings.look,
            watch: new.watch,
            is_quiet: false,
            is_single: !twice,
            files: kept,
            below: new.below.into(),
        };
        listed.below.iter().for_each(|name| _ = gone.remove(name));
        listings.places.insert(new.id, path.to_vec());
        listings.directories.insert(path.to_vec(), listed);
        gone.iter().for_each(|name| listings.forget(&join(path, name)));
    }

    /// Ends the visit of a directory: forgets what of its tree was not found. `is_complete` if nothing below it has to be
    /// looked at again before an event comes; whether the same is true of the directory itself.
    pub(super) fn visited(&mut self, path: &[u8], is_complete: bool) -> bool {
        let listings = &mut *self.listings;
        let Some(listed) = listings.directories.get(path).filter(|listed| listed.look == listings.look) else {
            return false;
        };
        let (below, mut last) = (Arc::clone(&listed.below), listed.at);
        for name in below.iter() {
            let path = join(path, name);
            match listings.directories.get(&path) {
                Some(listed) if listed.look == listings.look => last = last.max(listed.last),
                _ => listings.forget(&path),
            }
        }
        let Some(listed) = listings.directories.get_mut(path) else { return false };
        listed.last = last;
        listed.is_quiet = is_complete && listed.watch.is_some() && listed.is_single;
        listed.is_quiet
    }

    /// Ends the look: forgets the directories that it did not find, and returns all files, in order. The walk began at
    /// `roots`.
    pub(super) fn end(mut self, roots: Vec<Vec<u8>>) -> Files {
        let looked = self.listings.look;
        let gone: Vec<Vec<u8>> = match self.passed_over.is_empty() {
            true => self
                .listings
                .directories
                .iter()
                .filter(|(_, listed)| listed.look != looked)
                .map(|(path, _)| path.clone())
                .collect(),
            false => self.listings.roots.iter().filter(|root| !self.is_passed_over(root)).cloned().collect(),
        };
        gone.iter().for_each(|path| self.listings.forget(path));
        let Listings { all, numbered, added, removed, is_open, is_last, .. } = &mut *self.listings;
        if !added.is_empty() || !removed.is_empty() {
            removed.sort_unstable();
            all.retain(|file| removed.binary_search(&address(file)).is_err());
            removed.clear();
            all.append(added);
            all.sort_by(|a, b| by_inode(a).cmp(&by_inode(b)));
            if *is_last {
                // A path that led to two directories in this look may have shown one file twice.
                all.dedup();
            }
            *numbered = number(all).into();
        }
        *is_open = false;
        self.listings.roots = roots;
        self.listings.numbered.clone()
    }
}

/// A directory that was listed.
pub(super) struct New {
    pub(super) id: Id,
    /// None if it must be listed again.
    pub(super) stamp: Option<Stamp>,
    /// The number of its watch, which began before.
    pub(super) watch: Option<i32>,
    pub(super) files: Vec<File>,
    /// The directories in it.
    pub(super) below: Vec<CString>,
}

fn address(file: &Arc<File>) -> usize {
    Arc::as_ptr(file).addr()
}

fn by_inode(file: &File) -> (u64, u64, Option<i64>, &[u8]) {
    (file.dev, file.ino, file.birth, file.path.as_bytes())
}

/// Numbers the links of each file with several, in the order of their paths. `files` are in the order of [`by_inode`];
/// the number in each is 1 if it had several links when it was read. Since then another may have been made.
fn number(files: &[Arc<File>]) -> Vec<Arc<File>> {
    let mut out = Vec::with_capacity(files.len());
    for links in files.chunk_by(|a, b| (a.dev, a.ino, a.birth) == (b.dev, b.ino, b.birth)) {
        let several = links.iter().any(|file| file.link > 0);
        // Without a second link, it was renamed during the look.
        for (n, file) in links.iter().enumerate().take(if several { links.len() } else { 1 }) {
            let mut file = Arc::clone(file);
            let link = u32::try_from(n).unwrap_or(u32::MAX);
            if file.link != link {
                Arc::make_mut(&mut file).link = link;
            }
            out.push(file);
        }
    }
    out
}
