//! Which process made which directory entry and inode. No I/O except in [`locate`].

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::answer::Maker;
use super::fanotify::{Deed, Handle};
use super::sys;
use crate::membership::Membership;
use crate::observe::mount_table::Mounts;
use crate::observe::reach;

/// The keys under which events about a path are recorded.
pub(super) struct Located {
    entry: Option<(Handle, Box<[u8]>)>,
    inode: Handle,
}

/// Finds the handles of a path without following a symbolic link at its end.
pub(super) fn locate(path: &Path, mounts: &mut Mounts) -> Option<Located> {
    let handle = |fd: BorrowedFd<'_>| {
        let (kind, handle) = sys::handle_of(fd).ok()?;
        Some(Handle::new(fsid(rustix::fs::fstatvfs(fd).ok()?.f_fsid), kind, &handle))
    };
    let place = reach::open(path, None, false, mounts).ok()?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = reach::open(parent, None, true, mounts).ok();
    let entry =
        path.file_name().zip(parent).and_then(|(name, p)| Some((handle(p.fd.as_fd())?, name.as_bytes().into())));
    Some(Located { entry, inode: handle(place.fd.as_fd())? })
}

/// The two words of `f_fsid`, statfs(2), which rustix joins with the first word as the lower half.
fn fsid(joined: u64) -> [u8; 8] {
    let [low, high] = [joined as u32, (joined >> 32) as u32].map(u32::to_ne_bytes);
    [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]]
}

/// The records of one watch.
#[derive(Debug, Default)]
pub(super) struct Makers {
    entries: HashMap<(Handle, Box<[u8]>), Maker>,
    inodes: HashMap<Handle, Maker>,
    mounts: HashMap<u64, Maker>,
}

impl Makers {
    /// Records one event. Records of strangers are dropped when what they made is removed, so that noise does not fill
    /// the memory.
    pub(super) fn record(&mut self, deed: Deed, maker: Maker) {
        let stranger = maker.membership == Membership::Stranger;
        match deed {
            Deed::Entry { made, created, removed, directory, name, target } => {
                if made && !(removed && stranger) {
                    self.entries.insert((directory, name), maker);
                } else if removed {
                    self.entries.remove(&(directory, name));
                }
                let Some(target) = target else { return };
                if created && !(removed && stranger) {
                    // The first name made the inode, a later one is a link to it.
                    self.inodes.entry(target).or_insert(maker);
                } else if removed
                    && !made
                    && self.inodes.get(&target).is_some_and(|m| m.membership == Membership::Stranger)
                {
                    self.inodes.remove(&target);
                }
            }
            Deed::Attached(id) => {
                self.mounts.entry(id).or_insert(maker);
            }
            Deed::Overflow => {}
        }
    }

    /// The process that made this file: the maker of the inode or of the name, preferring the one in the run.
    pub(super) fn of_file(&self, at: &Located) -> Option<Maker> {
        let entry = at.entry.as_ref().and_then(|entry| self.entries.get(entry));
        let inode = self.inodes.get(&at.inode);
        let run = [entry, inode].into_iter().flatten().find(|m| m.membership == Membership::Run);
        run.or(entry).or(inode).copied()
    }

    /// The process that attached this mount.
    pub(super) fn of_mount(&self, id: u64) -> Option<Maker> {
        self.mounts.get(&id).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(n: u8) -> Handle {
        Handle::new([0; 8], [0; 4], &[n])
    }

    fn entry(mask: u64, name: u8, inode: u8) -> Deed {
        Deed::Entry {
            made: mask & (libc::FAN_CREATE | libc::FAN_MOVED_TO) != 0,
            created: mask & libc::FAN_CREATE != 0,
            removed: mask & (libc::FAN_DELETE | libc::FAN_MOVED_FROM) != 0,
            directory: handle(0),
            name: [name][..].into(),
            target: Some(handle(inode)),
        }
    }

    const RUN: Maker = Maker { pid: 10, membership: Membership::Run };
    const NOISE: Maker = Maker { pid: 20, membership: Membership::Stranger };

    fn file(makers: &Makers, name: u8, inode: u8) -> Option<Maker> {
        makers.of_file(&Located { entry: Some((handle(0), [name][..].into())), inode: handle(inode) })
    }

    #[test]
    fn a_file_that_a_stranger_renames_stays_the_runs() {
        let mut makers = Makers::default();
        makers.record(entry(libc::FAN_CREATE, b'a', 1), RUN);
        makers.record(entry(libc::FAN_MOVED_FROM, b'a', 1), NOISE);
        makers.record(entry(libc::FAN_MOVED_TO, b'b', 1), NOISE);
        assert_eq!(file(&makers, b'b', 1), Some(RUN));
    }

    #[test]
    fn a_name_that_the_run_gives_to_a_strangers_file_is_the_runs() {
        let mut makers = Makers::default();
        makers.record(entry(libc::FAN_CREATE, b'a', 1), NOISE);
        makers.record(entry(libc::FAN_CREATE, b'b', 1), RUN);
        assert_eq!(file(&makers, b'a', 1), Some(NOISE));
        assert_eq!(file(&makers, b'b', 1), Some(RUN));
    }

    #[test]
    fn a_name_that_a_stranger_uses_again_is_the_strangers() {
        let mut makers = Makers::default();
        makers.record(entry(libc::FAN_CREATE, b'a', 1), RUN);
        makers.record(entry(libc::FAN_DELETE, b'a', 1), RUN);
        makers.record(entry(libc::FAN_CREATE, b'a', 2), NOISE);
        assert_eq!(file(&makers, b'a', 2), Some(NOISE));
    }

    #[test]
    fn what_strangers_made_and_removed_leaves_no_record() {
        let mut makers = Makers::default();
        for inode in 0..100 {
            makers.record(entry(libc::FAN_CREATE, inode, inode), NOISE);
            makers.record(entry(libc::FAN_DELETE, inode, inode), NOISE);
            makers.record(entry(libc::FAN_CREATE | libc::FAN_DELETE, inode, inode), NOISE);
        }
        assert_eq!((makers.entries.len(), makers.inodes.len()), (0, 0));
    }
}
