//! Shared parts of the file walks.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, RawDir, Statx, StatxFlags, accessat};
use rustix::io::Errno;

use crate::kind::Kind;
use crate::resource::{File, Files, encode_device};
use crate::snapshot::{Coverage, Directory, Gap, Level, Submount, Unseen};
use crate::text::Text;

/// Directories deeper than this are not entered: each level holds a descriptor.
pub(super) const DEPTH: usize = 200;
/// `STATX_ATTR_MOUNT_ROOT` (Linux 5.8).
pub(super) const MOUNT_ROOT: u64 = 0x2000;
/// Magic numbers (statfs(2)) of file systems whose server may not answer: NFS, CIFS, SMB2, FUSE, 9p, Ceph, AFS, Coda.
pub(super) const REMOTE: [u64; 8] =
    [0x6969, 0xff53_4d42, 0xfe53_4d42, 0x6573_5546, 0x0102_1997, 0x00c3_6400, 0x5346_414f, 0x7375_7245];
/// `TMPFS_MAGIC` (statfs(2)).
pub(super) const TMPFS: u64 = 0x0102_1994;
/// The size of an empty directory on tmpfs: each name adds 20, including `.` and `..` (`BOGO_DIRENT_SIZE`, mm/shmem.c).
pub(super) const EMPTY: u64 = 40;
/// `STATX_ATTR_IMMUTABLE` and `STATX_ATTR_APPEND` (statx(2)).
pub(super) const PROTECTED: u64 = 0x10 | 0x20;

/// The result of a walk.
#[derive(Default)]
pub(crate) struct Walk {
    pub(crate) files: Files,
    pub(crate) gaps: Vec<Coverage>,
    /// Directories that were not listed.
    pub(crate) unlisted: Vec<Gap>,
    /// The directory that each root was.
    pub(crate) roots: Vec<Option<Directory>>,
    pub(crate) submounts: Vec<Submount>,
    /// What still exists of an arena's initial contents, by number.
    pub(super) born: HashMap<usize, Statx>,
}

impl Walk {
    pub(super) fn gap(&mut self, level: Level, reason: String) {
        // One unreadable directory is reported as clearly as a thousand.
        if self.gaps.len() < 8 {
            self.gaps.push(Coverage { level, reason });
        }
    }

    pub(super) fn root_not_listed(&mut self, root: &Path, reason: String) {
        let place = Unseen::Directory(Directory { path: Text::from(root), ..Directory::default() });
        self.unlisted.push(Gap { kind: Kind::File, level: Level::Partial, reason, place });
    }

    /// Records that the directory `name` of `dir`, or `dir` itself if `name` is empty, was not listed completely, so
    /// that nothing below it is comparable.
    pub(super) fn not_listed(&mut self, level: Level, reason: String, path: &[u8], (dir, name): (&OwnedFd, &CStr)) {
        let mut directory = Directory { path: Text::from(path), ..Directory::default() };
        if let Ok(st) = stat(dir, name) {
            let itself = format!("/proc/self/fd/{}", dir.as_raw_fd());
            let may = |access| match name.is_empty() {
                true => accessat(CWD, itself.as_str(), access, AtFlags::EACCESS).is_ok(),
                false => accessat(dir, name, access, AtFlags::EACCESS).is_ok(),
            };
            directory.dev = device_of(&st);
            directory.ino = st.stx_ino;
            directory.uid = st.stx_uid;
            directory.mode = u32::from(st.stx_mode) & 0o7777;
            directory.closed = !may(Access::EXEC_OK);
            directory.barren = !may(Access::WRITE_OK) && st.stx_nlink == 2;
        }
        self.unlisted.push(Gap { kind: Kind::File, level, reason, place: Unseen::Directory(directory) });
    }
}

pub(super) fn is_tmpfs(fd: &OwnedFd) -> bool {
    type_of(fd) == TMPFS
}

/// The type of the file system that it is on (statfs(2)); 0 if unknown.
pub(super) fn type_of(fd: &OwnedFd) -> u64 {
    rustix::fs::fstatfs(fd).map_or(0, |fs| fs.f_type as u64)
}

/// The names in a directory except `.` and `..`.
pub(super) fn names(dir: &OwnedFd) -> rustix::io::Result<Vec<CString>> {
    let mut buffer = vec![MaybeUninit::<u8>::uninit(); 8192];
    let mut entries = RawDir::new(dir.as_fd(), &mut buffer[..]);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

pub(super) fn join(path: &[u8], name: &CStr) -> Vec<u8> {
    [path.strip_suffix(b"/").unwrap_or(path), b"/", name.to_bytes()].concat()
}

pub(super) fn open_dir(at: &OwnedFd, name: &std::ffi::CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    // Only the owner can use O_NOATIME (open(2)).
    match rustix::fs::openat(at, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::openat(at, name, flags, Mode::empty()),
        other => other,
    }
}

pub(super) fn stat(at: impl AsFd, name: &std::ffi::CStr) -> rustix::io::Result<Statx> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    rustix::fs::statx(at, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

pub(super) fn device_of(st: &Statx) -> u64 {
    encode_device(st.stx_dev_major, st.stx_dev_minor)
}

pub(super) fn record(st: &Statx, path: &[u8], class: FileType) -> File {
    let birth = (st.stx_mask & StatxFlags::BTIME.bits() != 0)
        .then(|| st.stx_btime.tv_sec * 1_000_000_000 + i64::from(st.stx_btime.tv_nsec));
    File {
        dev: device_of(st),
        ino: st.stx_ino,
        birth,
        // Numbered at the end of the walk; a directory has one link.
        link: u32::from(st.stx_nlink > 1 && class != FileType::Directory),
        mapped_by: None,
        path: Text::from(path),
        class: class_name(class).to_owned(),
        mode: u32::from(st.stx_mode) & 0o7777,
        uid: st.stx_uid,
        size: st.stx_size,
        state: None,
        version: None,
    }
}

pub(crate) fn class_name(class: FileType) -> &'static str {
    match class {
        FileType::RegularFile => "file",
        FileType::Directory => "dir",
        FileType::Symlink => "symlink",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "char",
        FileType::BlockDevice => "block",
        FileType::Unknown => "unknown",
    }
}

pub(super) fn attributes(st: &Statx) -> (u16, u32, u32, u32, u32) {
    (st.stx_mode, st.stx_uid, st.stx_gid, st.stx_rdev_major, st.stx_rdev_minor)
}
