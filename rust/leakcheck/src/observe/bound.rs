//! Changes of a host directory or file that is bind mounted writable into an arena.
//!
//! There is no overlay: changes go to the host. So it is listed when the arena is first observed, and each look
//! compares with that list. Files are compared by their attributes and a digest of their content, large ones by size
//! and times.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::ffi::CStr;
use std::hash::{Hash, Hasher};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Statx};
use rustix::io::Errno;

use super::mount_table::Mounts;
use super::overlay::{is_given, xattr, xattr_names};
use super::reach::{self, Refusal};
use super::walk::{DEPTH, MOUNT_ROOT, PROTECTED, REMOTE, Walk, names, open_dir, record, stat};
use crate::error::Error;
use crate::resource::{File, FileState};
use crate::snapshot::Level;
use crate::text::Text;

/// Files above this size, and all files after this many bytes were read, are compared only by size and times.
const READ_MOST: u64 = 1 << 20;
const READ_ALL: u64 = 64 << 20;

/// One bind mount, with its initial contents.
#[derive(Debug)]
pub(crate) struct Bound {
    /// The path inside.
    path: PathBuf,
    /// The file or directory; none if opening it may hang.
    source: Option<OwnedFd>,
    /// By path inside.
    before: HashMap<Vec<u8>, Entry>,
    /// What could not be listed.
    gaps: Vec<String>,
}

/// The record of one file.
#[derive(Clone, Debug)]
struct Entry {
    record: File,
    attributes: (u16, u32, u32, u32, u32),
    /// The flags of chattr(1) that protect it.
    protection: u64,
    /// A digest of the extended attributes that somebody gave it.
    xattrs: u64,
    /// Size, mtime and ctime: if they are unchanged, everything is unchanged.
    times: (u64, i64, u32, i64, u32),
    ino: u64,
    content: Option<u64>,
}

impl Bound {
    /// Lists `source`, a path of the host that is mounted at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened.
    pub(crate) fn new(path: PathBuf, source: &Path) -> Result<Self, Error> {
        let name = path.as_os_str().as_encoded_bytes();
        let mut listing = Listing::new(READ_ALL);
        let source = match reach::open(source, None, true, &mut Mounts::of(None)) {
            Ok(place) => Some(place.fd),
            Err(Refusal::Kernel(e)) => return Err(Error::io("open", source, e)),
            Err(Refusal::MayHang(why)) => {
                listing.gaps.push(format!("{} is a bind mount, but {why}", Text::from(name)));
                None
            }
        };
        if let Some(source) = &source {
            listing.whole(source, name);
        }
        Ok(Bound { path, source, before: listing.entries, gaps: listing.gaps })
    }

    /// Appends what was changed and deleted since, and returns how many files are new: new files are the purpose of the
    /// bind mount.
    pub(crate) fn compare(&self, out: &mut Walk) -> i64 {
        let mut new = 0;
        // Only files with a changed time are read.
        let mut now = Listing { known: Some(&self.before), ..Listing::new(u64::MAX) };
        if let Some(source) = &self.source {
            now.whole(source, self.path.as_os_str().as_encoded_bytes());
        }
        for gap in self.gaps.iter().chain(&now.gaps) {
            out.gap(Level::Partial, gap.clone());
        }
        for (path, entry) in &now.entries {
            match self.before.get(path) {
                None => new += 1,
                Some(old) if old.same(entry) => {}
                Some(old) => out.files.push(File { size: entry.record.size, ..old.changed(path, entry) }),
            }
        }
        // What cannot be listed now may still exist.
        if now.gaps.is_empty() {
            let gone = self.before.iter().filter(|(path, _)| !now.entries.contains_key(*path));
            out.files.extend(gone.map(|(path, old)| old.deleted(path)));
        }
        new
    }
}

impl Entry {
    fn same(&self, now: &Entry) -> bool {
        let content = match (self.content, now.content) {
            (Some(old), Some(new)) => old == new,
            _ => (self.times.0, self.times.1, self.times.2) == (now.times.0, now.times.1, now.times.2),
        };
        let directory = self.record.class == "dir";
        let state = |e: &Entry| (e.attributes, e.protection, e.xattrs);
        state(self) == state(now) && (directory || self.times == now.times && self.ino == now.ino || content)
    }

    fn changed(&self, path: &[u8], now: &Entry) -> File {
        let version = digest(|h| {
            let state = (now.attributes, now.protection, now.xattrs);
            (path, state, now.content, now.content.is_none().then_some(now.times)).hash(h);
        });
        let (mode, uid) = (now.record.mode, now.record.uid);
        self.file(FileState::Changed, version, mode, uid, &now.record.class)
    }

    fn deleted(&self, path: &[u8]) -> File {
        self.file(FileState::Deleted, digest(|h| path.hash(h)), self.record.mode, self.record.uid, &self.record.class)
    }

    fn file(&self, state: FileState, version: u64, mode: u32, uid: u32, class: &str) -> File {
        File {
            birth: None,
            link: 0,
            mode,
            uid,
            class: class.to_owned(),
            state: Some(state),
            version: Some(version),
            ..self.record.clone()
        }
    }
}

/// One walk.
struct Listing<'a> {
    entries: HashMap<Vec<u8>, Entry>,
    gaps: Vec<String>,
    /// Bytes that may still be read.
    budget: u64,
    /// What is known already, including the content of a file with the same times.
    known: Option<&'a HashMap<Vec<u8>, Entry>>,
}

impl Listing<'_> {
    fn new(budget: u64) -> Self {
        Listing { entries: HashMap::new(), gaps: Vec::new(), budget, known: None }
    }

    fn whole(&mut self, source: &OwnedFd, path: &[u8]) {
        // The file system that its path starts on responds; nothing else is known about it yet.
        match rustix::fs::fstatfs(source) {
            Ok(fs) if REMOTE.contains(&(fs.f_type as u64)) => {
                let why = "its source is on a network or FUSE file system, which may hang: not read";
                return self.gaps.push(format!("{} {why}", Text::from(path)));
            }
            Ok(_) => {}
            Err(e) => return self.failed("statfs", path, e),
        }
        let st = match stat(source, c"") {
            Ok(st) => st,
            Err(e) => return self.failed("stat", path, e),
        };
        if FileType::from_raw_mode(u32::from(st.stx_mode)) != FileType::Directory {
            return self.add(source, c"", path, &st);
        }
        self.add(source, c"", path, &st);
        match open_dir(source, c".") {
            Ok(dir) => self.descend(&dir, path, 0),
            Err(e) => self.failed("open directory", path, e),
        }
    }

    fn descend(&mut self, dir: &OwnedFd, path: &[u8], depth: usize) {
        let names = match names(dir) {
            Ok(names) => names,
            Err(e) => return self.failed("list", path, e),
        };
        for name in names {
            let full = [path.strip_suffix(b"/").unwrap_or(path), b"/", name.to_bytes()].concat();
            let st = match stat(dir, &name) {
                Ok(st) => st,
                Err(e) => {
                    self.failed("stat", &full, e);
                    continue;
                }
            };
            if st.stx_attributes.bits() & MOUNT_ROOT != 0 {
                self.gaps
                    .push(format!("{} is another mount inside a bound directory: not entered", Text::from(&*full)));
                continue;
            }
            self.add(dir, &name, &full, &st);
            if FileType::from_raw_mode(u32::from(st.stx_mode)) != FileType::Directory {
                continue;
            }
            if depth >= DEPTH {
                self.gaps.push(format!("{} is deeper than {DEPTH} levels: not entered", Text::from(&*full)));
                continue;
            }
            match open_dir(dir, &name) {
                Ok(sub) => self.descend(&sub, &full, depth + 1),
                Err(e) => self.failed("open directory", &full, e),
            }
        }
    }

    fn add(&mut self, dir: &OwnedFd, name: &CStr, path: &[u8], st: &Statx) {
        let times = (st.stx_size, st.stx_mtime.tv_sec, st.stx_mtime.tv_nsec, st.stx_ctime.tv_sec, st.stx_ctime.tv_nsec);
        let known = self.known.and_then(|known| known.get(path));
        let unchanged = known.filter(|old| old.times == times && old.ino == st.stx_ino);
        let content = match known {
            Some(old) if unchanged.is_some() => old.content,
            // New files and files without anything to compare with need not be read.
            None if self.known.is_some() => None,
            Some(Entry { content: None, .. }) => None,
            _ => self.content(dir, name, st),
        };
        let xattrs = match unchanged {
            Some(old) => old.xattrs,
            None if self.known.is_some() && known.is_none() => 0,
            None => xattrs(dir, name),
        };
        let entry = Entry {
            protection: st.stx_attributes.bits() & PROTECTED,
            xattrs,
            record: record(st, path, FileType::from_raw_mode(u32::from(st.stx_mode))),
            attributes: (st.stx_mode, st.stx_uid, st.stx_gid, st.stx_rdev_major, st.stx_rdev_minor),
            times,
            ino: st.stx_ino,
            content,
        };
        self.entries.insert(path.to_vec(), entry);
    }

    fn content(&mut self, dir: &OwnedFd, name: &CStr, st: &Statx) -> Option<u64> {
        match FileType::from_raw_mode(u32::from(st.stx_mode)) {
            FileType::RegularFile if st.stx_size <= READ_MOST && st.stx_size <= self.budget => {
                self.budget -= st.stx_size;
                // An O_PATH descriptor of the file itself is opened again through /proc.
                let own = format!("/proc/self/fd/{}", dir.as_raw_fd());
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let open = |flags| match name.is_empty() {
                    true => rustix::fs::open(&*own, flags, Mode::empty()),
                    false => rustix::fs::openat(dir, name, flags | OFlags::NOFOLLOW, Mode::empty()),
                };
                let file = open(flags | OFlags::NOATIME).or_else(|_| open(flags)).ok()?;
                let mut buffer = vec![0; usize::try_from(READ_MOST).ok()? + 1];
                let n = super::overlay::fill(&file, &mut buffer);
                Some(digest(|h| buffer[..n].hash(h)))
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new()).ok()?;
                Some(digest(|h| target.hash(h)))
            }
            _ => None,
        }
    }

    fn failed(&mut self, what: &str, path: &[u8], e: Errno) {
        // Removed since it was listed.
        if e != Errno::NOENT {
            self.gaps.push(format!("{what} {}: {}", Text::from(path), std::io::Error::from(e)));
        }
    }
}

fn xattrs(dir: &OwnedFd, name: &CStr) -> u64 {
    let own = format!("/proc/self/fd/{}", dir.as_raw_fd()).into_bytes();
    // The link in /proc leads to the file itself.
    let path = if name.is_empty() { own } else { [&*own, b"/", name.to_bytes()].concat() };
    let mut list = xattr_names(&path, name.is_empty());
    list.retain(|attribute| is_given(attribute));
    list.sort();
    let values: Vec<_> = list.iter().map(|attribute| xattr(&path, attribute, name.is_empty())).collect();
    if list.is_empty() { 0 } else { digest(|h| (list, values).hash(h)) }
}

fn digest(write: impl FnOnce(&mut DefaultHasher)) -> u64 {
    let mut hasher = DefaultHasher::new();
    write(&mut hasher);
    hasher.finish()
}
