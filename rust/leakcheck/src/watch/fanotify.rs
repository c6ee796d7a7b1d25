//! Fanotify groups: which process made which directory entry or attached which mount. Events name the process too.
//!
//! fanotify(7), fanotify_init(2), fanotify_mark(2). Mount events (`FAN_REPORT_MNT`, 6.14) from `include/uapi/linux/fanotify.h`.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{clock, sys};
use crate::error::in_words;
use crate::observe::mount_table::Mounts;
use crate::observe::reach;
use crate::own_fd::OwnFd;

// Not in libc yet.
const FAN_REPORT_MNT: u32 = 0x4000;
const FAN_MARK_MNTNS: u32 = 0x110;
const FAN_MNT_ATTACH: u64 = 0x0100_0000;
const FAN_MNT_DETACH: u64 = 0x0200_0000;

const INFO_FID: u8 = 1;
const INFO_DFID_NAME: u8 = 2;
const INFO_MNT: u8 = 7;
const METADATA: usize = 24;
const METADATA_VERSION: u8 = 3;

const ENTRIES: u64 = libc::FAN_CREATE | libc::FAN_MOVED_TO | libc::FAN_MOVED_FROM | libc::FAN_DELETE | libc::FAN_ONDIR;

/// Identifies an inode as long as its filesystem exists: `fsid`, handle type and handle bytes, as fanotify and
/// name_to_handle_at(2) give them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Handle(Box<[u8]>);

impl Handle {
    /// Joins the parts; `handle` is the opaque part of a `struct file_handle`.
    pub(super) fn new(fsid: [u8; 8], kind: [u8; 4], handle: &[u8]) -> Handle {
        Handle([&fsid[..], &kind, handle].concat().into())
    }
}

/// The action that an event reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Deed {
    /// A name appeared in, or vanished from, a directory (or both, when the kernel merged two events).
    Entry { made: bool, created: bool, removed: bool, directory: Handle, name: Box<[u8]>, target: Option<Handle> },
    /// A mount with this unique id was attached where it had not been in this namespace.
    Attached(u64),
    /// The kernel dropped events.
    Overflow,
}

/// One event: which process did what. The pid is a thread group's, 0 if it is outside our pid namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) pid: u32,
    pub(super) deed: Deed,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// Parses the events of one `read`. `None` stands for an event in an unknown format.
pub(super) fn parse(mut bytes: &[u8]) -> Vec<Option<Event>> {
    let mut events = Vec::new();
    while let Some(len) = array(bytes, 0).map(|l| u32::from_ne_bytes(l) as usize) {
        let Some((event, rest)) = bytes.split_at_checked(len).filter(|_| len >= METADATA) else {
            events.push(None);
            break;
        };
        events.push(parse_one(event));
        bytes = rest;
    }
    events
}

fn parse_one(event: &[u8]) -> Option<Event> {
    if *event.get(4)? != METADATA_VERSION {
        return None;
    }
    let skip = usize::from(u16::from_ne_bytes(array(event, 6)?));
    let mask = u64::from_ne_bytes(array(event, 8)?);
    let pid = u32::from_ne_bytes(array(event, 20)?);
    if mask & libc::FAN_Q_OVERFLOW != 0 {
        return Some(Event { pid, deed: Deed::Overflow });
    }
    let (mut entry, mut target, mut mount) = (None, None, None);
    let mut infos = event.get(skip..)?;
    while let Some(len) = array(infos, 2).map(|l| usize::from(u16::from_ne_bytes(l))) {
        let info = infos.get(..len).filter(|i| i.len() >= 4)?;
        match info[0] {
            INFO_FID => target = Some(handle(info)?.0),
            INFO_DFID_NAME => entry = Some(handle(info)?),
            // The id is aligned to its size.
            INFO_MNT => mount = Some(u64::from_ne_bytes(array(info, 8)?)),
            _ => {}
        }
        infos = &infos[len..];
    }
    let deed = match (entry, mount) {
        (Some((directory, rest)), _) => Deed::Entry {
            made: mask & (libc::FAN_CREATE | libc::FAN_MOVED_TO) != 0,
            created: mask & libc::FAN_CREATE != 0,
            removed: mask & (libc::FAN_DELETE | libc::FAN_MOVED_FROM) != 0,
            directory,
            name: rest.split(|b| *b == 0).next()?.into(),
            target,
        },
        // A move within the namespace sets both bits: the mount existed before.
        (None, Some(id)) if mask & (FAN_MNT_ATTACH | FAN_MNT_DETACH) == FAN_MNT_ATTACH => Deed::Attached(id),
        _ => return None,
    };
    Some(Event { pid, deed })
}

/// Reads `fanotify_event_info_fid`: header, fsid, `struct file_handle`; what follows is the name.
fn handle(info: &[u8]) -> Option<(Handle, &[u8])> {
    let fsid = array(info, 4)?;
    let len = u32::from_ne_bytes(array(info, 12)?) as usize;
    let kind = array(info, 16)?;
    let end = 20usize.checked_add(len)?;
    Some((Handle::new(fsid, kind, info.get(20..end)?), &info[end..]))
}

/// An unlimited queue needs `CAP_SYS_ADMIN`; without it, events have no pids either.
fn init(report: u32) -> Result<OwnFd, Errno> {
    let common = libc::FAN_CLASS_NOTIF | libc::FAN_UNLIMITED_QUEUE | libc::FAN_NONBLOCK | libc::FAN_CLOEXEC;
    OwnFd::new(sys::fanotify_init(common | report)?)
}

fn refused(errno: Errno, too_old: &str) -> String {
    match errno {
        Errno::PERM => "fanotify: CAP_SYS_ADMIN in the initial user namespace is missing".to_owned(),
        Errno::INVAL => format!("fanotify: {too_old}"),
        Errno::NOSYS => "fanotify: the kernel is built without it".to_owned(),
        other => format!("fanotify_init: {}", in_words(other)),
    }
}

/// A notification group.
pub(super) struct Group {
    fd: OwnFd,
    entries: bool,
    /// When its queue was last known to be empty, `CLOCK_MONOTONIC`.
    pub(super) quiet: u64,
}

impl Group {
    /// A group for directory entries. The reason, if the kernel refuses.
    pub(super) fn for_entries() -> Result<Group, String> {
        init(libc::FAN_REPORT_DFID_NAME_TARGET)
            .or_else(|errno| if errno == Errno::INVAL { init(libc::FAN_REPORT_DFID_NAME) } else { Err(errno) })
            .map(|fd| Group { fd, entries: true, quiet: clock::monotonic() })
            .map_err(|errno| refused(errno, "reporting names needs Linux 5.9"))
    }

    /// A group for the mounts of our mount namespace. The reason, if the kernel refuses.
    pub(super) fn for_mounts() -> Result<Group, String> {
        let fd = init(FAN_REPORT_MNT).map_err(|errno| refused(errno, "reporting mounts needs Linux 6.14"))?;
        let group = Group { fd, entries: false, quiet: clock::monotonic() };
        let own = "/proc/self/ns/mnt";
        rustix::fs::open(own, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|namespace| group.watch_namespace(namespace.as_fd()))
            .map_err(|errno| format!("fanotify_mark {own}: {}", in_words(errno)))?;
        Ok(group)
    }

    /// Watches another mount namespace, into which mounts may propagate from ours.
    pub(super) fn watch_namespace(&self, namespace: BorrowedFd<'_>) -> Result<(), Errno> {
        let flags = libc::FAN_MARK_ADD | FAN_MARK_MNTNS;
        let path = CString::new(format!("/proc/self/fd/{}", namespace.as_raw_fd())).map_err(|_| Errno::INVAL)?;
        sys::fanotify_mark(self.fd.as_fd(), flags, FAN_MNT_ATTACH, None, &path)
    }

    /// Watches the whole filesystem that contains `path`. The reason, if the kernel refuses, or if the filesystem may
    /// not respond.
    pub(super) fn watch_filesystem(&self, path: &Path, mounts: &mut Mounts) -> Result<(), String> {
        let place = reach::open(path, None, true, mounts)
            .map_err(|e| format!("cannot open {}: {}", path.display(), in_words(e)))?;
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
        sys::fanotify_mark(self.fd.as_fd(), flags, ENTRIES, Some(place.fd.as_fd()), c".").map_err(|errno| {
            let why = match errno {
                Errno::NODEV => " (the filesystem has no fsid)",
                Errno::XDEV => " (a subvolume with an fsid of its own)",
                Errno::OPNOTSUPP => " (the filesystem has no file handles)",
                _ => "",
            };
            format!("fanotify_mark {}: {}{why}", path.display(), in_words(errno))
        })
    }

    /// Readable when there is something to read.
    pub(super) fn source(&self) -> &OwnFd {
        &self.fd
    }

    /// Reads a batch without blocking; empty if the queue is empty.
    pub(super) fn read<'b>(&self, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        loop {
            match rustix::io::read(&self.fd, &mut *buffer) {
                Ok(n) => return Ok(&buffer[..n]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(&[]),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Drop for Group {
    /// Removes the marks: a copy of the FD that a forked child inherited would otherwise collect events as long as the
    /// child lives.
    fn drop(&mut self) {
        if !self.fd.is_ours() {
            return;
        }
        let of = if self.entries { libc::FAN_MARK_FILESYSTEM } else { FAN_MARK_MNTNS };
        // Needs no path: the marked one may be gone.
        let _ = sys::fanotify_mark(self.fd.as_fd(), libc::FAN_MARK_FLUSH | of, 0, None, c"/");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(mask: u64, pid: u32, infos: &[Vec<u8>]) -> Vec<u8> {
        let infos = infos.concat();
        let mut bytes = ((METADATA + infos.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend([METADATA_VERSION, 0]);
        bytes.extend((METADATA as u16).to_ne_bytes());
        bytes.extend(mask.to_ne_bytes());
        bytes.extend((-1i32).to_ne_bytes());
        bytes.extend(pid.to_ne_bytes());
        bytes.extend(infos);
        bytes
    }

    fn fid(kind: u8, handle: &[u8], name: &[u8]) -> Vec<u8> {
        let mut body = vec![1, 2, 3, 4, 5, 6, 7, 8];
        body.extend((handle.len() as u32).to_ne_bytes());
        body.extend(1u32.to_ne_bytes());
        body.extend(handle);
        body.extend(name);
        body.resize(body.len().next_multiple_of(4), 0);
        let mut info = vec![kind, 0];
        info.extend(((body.len() + 4) as u16).to_ne_bytes());
        info.extend(body);
        info
    }

    fn key(handle: &[u8]) -> Handle {
        Handle::new([1, 2, 3, 4, 5, 6, 7, 8], 1u32.to_ne_bytes(), handle)
    }

    #[test]
    fn a_creation_gives_directory_name_and_target() {
        let name = b"a\n\xff\x1b[31m\0";
        let bytes =
            event(libc::FAN_CREATE, 42, &[fid(INFO_DFID_NAME, b"dirdir!!", name), fid(INFO_FID, b"filefile", b"")]);
        let deed = Deed::Entry {
            made: true,
            created: true,
            removed: false,
            directory: key(b"dirdir!!"),
            name: b"a\n\xff\x1b[31m"[..].into(),
            target: Some(key(b"filefile")),
        };
        assert_eq!(parse(&bytes), [Some(Event { pid: 42, deed })]);
    }

    #[test]
    fn several_events_of_one_read_come_in_order() {
        let bytes = [
            event(libc::FAN_MOVED_FROM, 1, &[fid(INFO_DFID_NAME, b"d", b"x\0")]),
            event(libc::FAN_MOVED_TO, 2, &[fid(INFO_DFID_NAME, b"d", b"y\0")]),
            event(libc::FAN_Q_OVERFLOW, 0, &[]),
        ]
        .concat();
        let events = parse(&bytes);
        assert_eq!(events.iter().map(|e| e.as_ref().map(|e| e.pid)).collect::<Vec<_>>(), [Some(1), Some(2), Some(0)]);
        assert_eq!(events[2].as_ref().map(|e| &e.deed), Some(&Deed::Overflow));
    }

    #[test]
    fn an_attached_mount_is_distinguished_from_a_moved_one() {
        let mut info = vec![INFO_MNT, 0];
        info.extend(16u16.to_ne_bytes());
        info.extend([0; 4]);
        info.extend(0x8000_0001u64.to_ne_bytes());
        let attached = parse(&event(FAN_MNT_ATTACH, 5, &[info.clone()]));
        assert_eq!(attached, [Some(Event { pid: 5, deed: Deed::Attached(0x8000_0001) })]);
        assert_eq!(parse(&event(FAN_MNT_ATTACH | FAN_MNT_DETACH, 5, &[info])), [None]);
    }

    #[test]
    fn a_truncated_event_is_reported_and_ends_the_reading() {
        let bytes = event(libc::FAN_CREATE, 42, &[fid(INFO_DFID_NAME, b"dirdir!!", b"name\0")]);
        for end in 4..bytes.len() {
            assert_eq!(parse(&bytes[..end]), [None], "cut at {end}");
        }
        let mut lying = bytes.clone();
        lying[METADATA + 12..METADATA + 16].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(parse(&lying), [None]);
    }
}
