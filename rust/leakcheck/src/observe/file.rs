//! Files of every type below declared roots.
//!
//! A root is walked with descriptors, without following links, without crossing into another mount, and without touching
//! access times where that is permitted. A root on a file system that may hang is not entered.

use std::collections::HashMap;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Statx, StatxFlags};
use rustix::io::Errno;

use super::source::Sample;
use crate::error::Error;
use crate::resource::{File, encode_device};
use crate::snapshot::{Coverage, Level};
use crate::text::Text;

/// Roots of the file kind when none are declared.
pub const DEFAULT_ROOTS: [&str; 4] = ["/tmp", "/var/tmp", "/dev/shm", "/run"];
/// Directories deeper than this are not entered: each level holds a descriptor.
pub(super) const DEPTH: usize = 200;
/// `STATX_ATTR_MOUNT_ROOT` (Linux 5.8).
pub(super) const MOUNT_ROOT: u64 = 0x2000;
/// Magic numbers (statfs(2)) of file systems whose server may not answer: NFS, CIFS, SMB2, FUSE, 9p, Ceph, AFS, Coda.
const REMOTE: [u64; 8] =
    [0x6969, 0xff53_4d42, 0xfe53_4d42, 0x6573_5546, 0x0102_1997, 0x00c3_6400, 0x5346_414f, 0x7375_7245];

/// What a walk gave.
#[derive(Default)]
pub(crate) struct Walk {
    pub(crate) files: Vec<File>,
    pub(crate) gaps: Vec<Coverage>,
}

impl Walk {
    pub(super) fn gap(&mut self, level: Level, reason: String) {
        // One unreadable directory in a thousand is told as clearly as a thousand.
        if self.gaps.len() < 8 {
            self.gaps.push(Coverage { level, reason });
        }
    }
}

/// Walks every root.
pub(crate) fn walk(roots: &[PathBuf]) -> Walk {
    let mut out = Walk::default();
    let mut seen = Vec::new();
    // One buffer for all levels: the walk recurses, and a thread's stack is small.
    let mut buffer = vec![MaybeUninit::<u8>::uninit(); 16384];
    for root in roots {
        match open_root(root) {
            Ok(Some((dir, st))) => {
                let dev = device_of(&st);
                if seen.contains(&(dev, st.stx_ino)) {
                    continue;
                }
                seen.push((dev, st.stx_ino));
                let path = std::fs::canonicalize(root).unwrap_or_else(|_| root.clone());
                descend(&dir, path.as_os_str().as_encoded_bytes(), dev, 0, &mut buffer, &mut out);
            }
            // A root that does not exist holds no file.
            Ok(None) => {}
            Err(why) => out.gap(Level::Partial, why),
        }
    }
    number_links(&mut out.files);
    out
}

/// Walks roots that are open already, each with the path that its files are reported below.
pub(crate) fn walk_open(roots: &[(PathBuf, OwnedFd)]) -> Walk {
    let mut out = Walk::default();
    let mut buffer = vec![MaybeUninit::uninit(); 16384];
    for (path, root) in roots {
        let opened = open_dir(root, c".").and_then(|dir| Ok((stat(&dir, c"")?, dir)));
        match opened {
            Ok((st, dir)) => {
                descend(&dir, path.as_os_str().as_encoded_bytes(), device_of(&st), 0, &mut buffer, &mut out);
            }
            Err(e) => out.gap(Level::Partial, Error::io("open directory", path, e).to_string()),
        }
    }
    number_links(&mut out.files);
    out
}

/// The names in a directory but `.` and `..`.
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

fn open_root(root: &Path) -> Result<Option<(OwnedFd, Statx)>, String> {
    let path_only = OFlags::PATH | OFlags::CLOEXEC;
    let place = match rustix::fs::open(root, path_only, Mode::empty()) {
        Ok(place) => place,
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(Error::io("open", root, e).to_string()),
    };
    // fstatfs of a descriptor opened with O_PATH needs no answer of the server to open.
    let fs = rustix::fs::fstatfs(&place).map_err(|e| Error::io("statfs", root, e).to_string())?;
    if REMOTE.contains(&(fs.f_type as u64)) {
        return Err(format!("{} is on a network or FUSE file system, which may hang: not entered", root.display()));
    }
    let dir = open_dir(&place, c".").map_err(|e| Error::io("open directory", root, e).to_string())?;
    let st = stat(&dir, c"").map_err(|e| Error::io("stat", root, e).to_string())?;
    Ok(Some((dir, st)))
}

pub(super) fn open_dir(at: &OwnedFd, name: &std::ffi::CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    // Only the owner may ask not to change the access time (open(2), O_NOATIME).
    match rustix::fs::openat(at, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::openat(at, name, flags, Mode::empty()),
        other => other,
    }
}

pub(super) fn stat(at: impl AsFd, name: &std::ffi::CStr) -> rustix::io::Result<Statx> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    rustix::fs::statx(at, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

fn device_of(st: &Statx) -> u64 {
    encode_device(st.stx_dev_major, st.stx_dev_minor)
}

fn descend(dir: &OwnedFd, path: &[u8], dev: u64, depth: usize, buffer: &mut [MaybeUninit<u8>], out: &mut Walk) {
    let mut subdirs: Vec<CString> = Vec::new();
    let mut entries = RawDir::new(dir.as_fd(), &mut *buffer);
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Ok(entry) => entry,
            // Removed since it was opened (getdents(2)): what was in it is not there either.
            Err(Errno::NOENT) => return,
            Err(e) => {
                return out.gap(Level::Partial, format!("list {}: {}", Text::from(path), std::io::Error::from(e)));
            }
        };
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        // Gone since it was listed: it is not there.
        let st = match stat(dir, name) {
            Ok(st) => st,
            // Gone since it was listed.
            Err(Errno::NOENT) => continue,
            Err(e) => {
                let full = [path, b"/", name.to_bytes()].concat();
                out.gap(Level::Partial, format!("stat {}: {}", Text::from(&*full), std::io::Error::from(e)));
                continue;
            }
        };
        if st.stx_attributes.bits() & MOUNT_ROOT != 0 || device_of(&st) != dev {
            // A mount: the mount kind has it, and what is below it belongs to another file system.
            continue;
        }
        let full = [path.strip_suffix(b"/").unwrap_or(path), b"/", name.to_bytes()].concat();
        let class = FileType::from_raw_mode(u32::from(st.stx_mode));
        if class == FileType::Directory {
            subdirs.push(name.to_owned());
        }
        out.files.push(record(&st, &full, class));
    }
    for name in subdirs {
        let full = [path.strip_suffix(b"/").unwrap_or(path), b"/", name.to_bytes()].concat();
        if depth >= DEPTH {
            out.gap(Level::Partial, format!("{} is deeper than {DEPTH} levels: not entered", Text::from(&*full)));
            continue;
        }
        match open_dir(dir, &name) {
            Ok(sub) => descend(&sub, &full, dev, depth + 1, buffer, out),
            Err(Errno::NOENT) => {}
            Err(e) => {
                out.gap(Level::Partial, format!("open directory {}: {}", Text::from(&*full), std::io::Error::from(e)))
            }
        }
    }
}

pub(super) fn record(st: &Statx, path: &[u8], class: FileType) -> File {
    let birth = (st.stx_mask & StatxFlags::BTIME.bits() != 0)
        .then(|| st.stx_btime.tv_sec * 1_000_000_000 + i64::from(st.stx_btime.tv_nsec));
    File {
        dev: device_of(st),
        ino: st.stx_ino,
        birth,
        // Told apart in `number_links`; a directory has one link.
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

/// Numbers the links of each file that has several, in the order of their paths.
fn number_links(files: &mut [File]) {
    let mut links: HashMap<(u64, u64), Vec<usize>> = HashMap::new();
    for (at, file) in files.iter().enumerate().filter(|(_, f)| f.link > 0) {
        links.entry((file.dev, file.ino)).or_default().push(at);
    }
    for mut places in links.into_values() {
        places.sort_by(|&a, &b| files[a].path.cmp(&files[b].path));
        for (n, at) in places.into_iter().enumerate() {
            files[at].link = u32::try_from(n).unwrap_or(u32::MAX);
        }
    }
}

/// Deleted files that only a mapping keeps.
pub(crate) fn mapped(samples: &mut [Sample]) -> Vec<File> {
    samples.iter_mut().flat_map(|s| std::mem::take(&mut s.deleted_maps)).collect()
}
