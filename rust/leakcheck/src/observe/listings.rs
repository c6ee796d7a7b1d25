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

use std::collections::HashMap;
use std::ffi::CString;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::fs::{Statx, StatxFlags};

use super::walk::device_of;
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
    /// From now on, what is new must be described as it is.
    pub(crate) fn begin_run(&mut self) {
        self.run = Some(Instant::now());
    }

    /// Begins a look: with nothing remembered if the mounts changed, or if the last look did not end.
    pub(super) fn look(&self, mounts: Vec<u8>) -> Look<'_> {
        let mut listings = self.listings.lock().unwrap_or_else(PoisonError::into_inner);
        if mounts.is_empty() || listings.mounts != mounts || listings.is_open {
            *listings = Listings { mounts, ..Listings::default() };
        }
        listings.is_open = true;
        listings.look += 1;
        Look { listings, run: self.run }
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
    /// All of them, in the order of [`by_inode`].
    all: Vec<Arc<File>>,
    /// The same with their links numbered, and no file twice.
    numbered: Files,
    /// Changes since then.
    added: Vec<Arc<File>>,
    /// Addresses: those in `all` stay allocated.
    removed: Vec<usize>,
}

struct Listed {
    /// None if it must be listed again.
    stamp: Option<Stamp>,
    at: Instant,
    /// The last look that found it.
    look: u64,
    files: Vec<Arc<File>>,
    below: Arc<[CString]>,
}

/// What is different after a change.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    id: (u64, u64, (i64, u32)),
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

    pub(super) fn device(&self) -> u64 {
        self.id.0
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
}

impl Look<'_> {
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

    /// Adds a directory that was listed.
    pub(super) fn add(&mut self, path: &[u8], stamp: Option<Stamp>, files: Vec<File>, below: Vec<CString>) {
        let listings = &mut *self.listings;
        let old = listings.directories.remove(path);
        // The same path twice in one look leads to two directories, of which one came or went.
        let twice = old.as_ref().is_some_and(|old| old.look == listings.look);
        let old = old.map(|old| old.files).unwrap_or_default();
        let mut known: HashMap<&[u8], &Arc<File>> = old.iter().map(|file| (file.path.as_bytes(), file)).collect();
        let mut kept = Vec::with_capacity(files.len());
        for file in files {
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
        let (look, stamp) = (listings.look, stamp.filter(|_| !twice));
        let listed = Listed { stamp, at: Instant::now(), look, files: kept, below: below.into() };
        listings.directories.insert(path.to_vec(), listed);
    }

    /// Ends the look: forgets the directories that it did not find, and returns all files, in order.
    pub(super) fn end(mut self) -> Files {
        let Listings { look, directories, all, numbered, added, removed, is_open, .. } = &mut *self.listings;
        directories.retain(|_, listed| {
            let found = listed.look == *look;
            if !found {
                removed.extend(listed.files.iter().map(address));
            }
            found
        });
        if !added.is_empty() || !removed.is_empty() {
            removed.sort_unstable();
            all.retain(|file| removed.binary_search(&address(file)).is_err());
            removed.clear();
            all.append(added);
            all.sort_by(|a, b| by_inode(a).cmp(&by_inode(b)));
            *numbered = number(all).into();
        }
        *is_open = false;
        numbered.clone()
    }
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
