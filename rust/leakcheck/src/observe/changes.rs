//! Which of the directories that looks listed have changed since, by inotify(7).
//!
//! An event is queued before the call returns that changed the directory. A look reads the queue after the processes:
//! a process that it did not see has returned from its last call. inotify sees what happens to an inode, by whatever
//! path and in whichever mount namespace; it does not see what reaches a file system from below, so only directories of
//! some file systems are watched.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init, remove_watch};
use rustix::io::Errno;

use super::walk::TMPFS;
use crate::own_fd::OwnFd;
use crate::this_process::ThisProcess;

/// `f_type` (statfs(2)) of file systems that change only through their mounts: ext4, XFS, Btrfs, tmpfs.
const WATCHED: [u64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, TMPFS];
/// Entries that come and go, and permissions.
const CHANGES: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);
const LIMIT: &str = "/proc/sys/fs/inotify/max_user_watches";
/// The share of the user's watches that one process takes at most: the programs under test need some.
const SHARE: usize = 8;

/// Watched directories, by their numbers.
pub(super) struct Changes {
    queue: OwnFd,
    /// A forked child shares the queue, and would take its parent's events.
    owner: ThisProcess,
    paths: HashMap<i32, Vec<u8>>,
    most: usize,
}

impl Changes {
    /// None if the kernel refuses.
    pub(super) fn open() -> Option<Self> {
        let queue = OwnFd::new(init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?).ok()?;
        let limit = std::fs::read_to_string(LIMIT).ok()?.trim().parse::<usize>().ok()?;
        Some(Changes { queue, owner: ThisProcess::now(), paths: HashMap::new(), most: limit / SHARE })
    }

    /// Whether it is this process' own, and the program has not closed it, as one does that closes all descriptors.
    pub(super) fn is_usable(&self) -> bool {
        self.owner == ThisProcess::now() && self.queue.is_ours()
    }

    pub(super) fn number(&self) -> RawFd {
        self.queue.number()
    }

    /// Watches a directory from now on. None if it cannot be watched, or not on this file system.
    pub(super) fn watch(&mut self, dir: &OwnedFd, f_type: u64, path: &[u8]) -> Option<i32> {
        if !WATCHED.contains(&f_type) || self.paths.len() >= self.most {
            return None;
        }
        let number = add_watch(&self.queue, format!("/proc/self/fd/{}", dir.as_raw_fd()), CHANGES).ok()?;
        self.paths.insert(number, path.to_vec());
        Some(number)
    }

    /// No longer watches a directory, unless it is watched under another path by now.
    pub(super) fn forget(&mut self, number: i32, path: &[u8]) {
        if self.paths.get(&number).is_some_and(|watched| watched == path) {
            self.paths.remove(&number);
            // It fails if the directory no longer exists.
            let _ = remove_watch(&self.queue, number);
        }
    }

    /// Takes the events out of the queue, and returns the directories that they are about. None if the kernel dropped
    /// some: then nothing is known of any directory.
    pub(super) fn take(&mut self) -> Option<Vec<Vec<u8>>> {
        let mut buffer = [MaybeUninit::uninit(); 16384];
        let mut reader = Reader::new(&self.queue, &mut buffer);
        let (mut changed, mut last) = (Vec::new(), -1);
        loop {
            match reader.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => break,
                Ok(event) => {
                    let number = event.wd();
                    if number != last {
                        changed.extend(self.paths.get(&number).cloned());
                        last = number;
                    }
                    if event.events().contains(ReadFlags::IGNORED) {
                        self.paths.remove(&number);
                    }
                }
                Err(Errno::AGAIN) => return Some(changed),
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        self.paths.clear();
        None
    }
}
