//! Files of every type below declared roots.
//!
//! A root is walked with descriptors, without following links, and without changing access times if permitted. Local
//! file systems that are mounted below it are walked too. A file system that may hang is not entered, nor is a root on
//! one.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, RawDir, Statx};
use rustix::io::Errno;

use super::arena::ObservedArena;
use super::born::Born;
use super::context::Context;
use super::listings::{Look, New, Remembered, Stamp};
use super::lookup::file_clock_ns;
use super::mount_table::{Known, Mounts, Nature, number};
use super::pass::Sample;
use super::proc_root::read_file;
use super::reach::{self, Refusal};
use super::walk::{
    DEPTH, EMPTY, MOUNT_ROOT, REMOTE, TMPFS, Walk, device_of, is_tmpfs, join, open_dir, record, stat, type_of,
};
use crate::error::{Doing, Error, in_words};
use crate::resource::File;
use crate::snapshot::{Directory, Level, Submount};
use crate::text::Text;

/// Roots of the file kind when none are declared; [`CGROUPS`] too, where it is a tmpfs.
pub const DEFAULT_ROOTS: [&str; 4] = ["/tmp", "/var/tmp", "/dev/shm", "/run"];
/// Where cgroup v1 hierarchies are mounted, in a tmpfs: a program that mistakes it for a hierarchy makes plain files
/// and directories in it.
pub(super) const CGROUPS: &str = "/sys/fs/cgroup";
/// FUSE file systems of a desktop session, below every user's `/run/user`: they show documents and remote directories,
/// and store nothing.
const OF_SESSIONS: [&[u8]; 2] = [b"fuse.portal", b"fuse.gvfsd-fuse"];

/// Whether there is a tmpfs at [`CGROUPS`].
pub(super) fn is_tmpfs_of_cgroups() -> bool {
    let place = reach::open(Path::new(CGROUPS), None, true, &mut Mounts::of(None));
    place.is_ok_and(|place| is_tmpfs(&place.fd))
}

/// Walks every root. Below them, only the mounts in `known` are entered, or all if it is none. Directories that did not
/// change since the looks in `remembered` are not listed again.
pub(super) fn walk(
    roots: &[PathBuf],
    context: Context<'_>,
    known: Option<&[Submount]>,
    remembered: &Remembered,
) -> Walk {
    let table = read_file("/proc/thread-self/mountinfo").unwrap_or_default();
    let mut walker = Walker::new(context.mounts(), None, known, remembered.look(table));
    for root in roots {
        let found = match walker.open_root(root) {
            Ok(Some((dir, st, path))) => {
                walker.root(&dir, &st, &path);
                let (dev, ino) = (device_of(&st), st.stx_ino);
                Some(Directory { path: Text::from(path.as_path()), dev, ino, ..Directory::default() })
            }
            // A root that does not exist contains no file.
            Ok(None) => None,
            Err(why) => {
                walker.out.root_not_listed(root, why);
                Some(Directory::default())
            }
        };
        walker.out.roots.push(found);
    }
    walker.end()
}

/// Walks the arena's fresh file systems, as [`walk`] does for roots, and everything else that was mounted in it before
/// the run, by its mount table. An overlay's upper directory lies in one of them, or in the arena's own overlay.
pub(super) fn walk_arena(arena: &ObservedArena, context: Context<'_>, known: Option<&[Submount]>) -> Walk {
    let nothing = Remembered::nothing();
    let mut mounts = context.mounts();
    mounts.add_read();
    let mut walker = Walker::new(mounts, Some(&arena.born), known, nothing.look(Vec::new()));
    walker.types.clone_from(&arena.types);
    for (path, root) in &arena.view.roots {
        // Each look would read all hierarchies there, which contain no files. On an ordinary user's root are overlays, which
        // are compared otherwise.
        walker.mounts_too = path != Path::new(CGROUPS) && path != Path::new("/");
        // An empty one, as most are, need not be opened.
        match stat(root, c"") {
            Ok(st) => walker.root(root, &st, path),
            Err(e) => walker.out.root_not_listed(path, Error::io("stat", path, e).to_string()),
        }
    }
    let elsewhere = |mount: &Known| {
        let path = Path::new(OsStr::from_bytes(mount.target.as_ref()));
        let fresh = !arena.first_devices.contains(&mount.dev) && mount.fs_type.as_ref() != b"overlay";
        fresh
            && mount.nature == Nature::Local
            && !arena.view.roots.iter().any(|(root, _)| root != Path::new("/") && path.starts_with(root))
    };
    let others = walker.mounts.those(elsewhere);
    let root = if others.is_empty() { None } else { arena.view.root().ok() };
    for mount in others {
        let path = Path::new(OsStr::from_bytes(mount.target.as_ref()));
        // Otherwise another mount covers it, or it is a mount of the run, which is reported as a mount.
        if let Some(place) = root.as_ref().and_then(|root| reach::open(path, Some(root), true, &mut walker.mounts).ok())
        {
            walker.enter(&place.fd, mount.target.as_ref(), 0);
        }
    }
    walker.end()
}

struct Walker<'a> {
    out: Walk,
    look: Look<'a>,
    mounts: Mounts,
    known: Option<&'a [Submount]>,
    /// Whether mounts below a root are walked.
    mounts_too: bool,
    /// Directories that were walked: a file system may be bound twice, or two roots may be one.
    seen: HashSet<(u64, u64)>,
    /// Devices, and the file system type of each.
    types: HashMap<u64, u64>,
    /// The arena's initial contents; the walk records what of them still exists.
    born: Option<&'a Born>,
    /// One buffer for all levels: the walk recurses, and a thread's stack is small.
    buffer: Vec<MaybeUninit<u8>>,
    roots: Vec<Vec<u8>>,
    /// How often something was found that the next look must look at again.
    unsettled: usize,
}

impl<'a> Walker<'a> {
    fn new(mounts: Mounts, born: Option<&'a Born>, known: Option<&'a [Submount]>, look: Look<'a>) -> Self {
        let buffer = vec![MaybeUninit::uninit(); 16384];
        Walker {
            out: Walk::default(),
            look,
            mounts,
            known,
            mounts_too: true,
            seen: HashSet::new(),
            types: HashMap::new(),
            born,
            buffer,
            roots: Vec::new(),
            unsettled: 0,
        }
    }

    fn end(mut self) -> Walk {
        self.out.files = self.look.end(self.roots);
        self.out
    }

    fn open_root(&mut self, root: &Path) -> Result<Option<(OwnedFd, Statx, PathBuf)>, String> {
        let place = match reach::open(root, None, true, &mut self.mounts) {
            Ok(place) => place,
            Err(Refusal::Kernel(Errno::NOENT)) => return Ok(None),
            Err(e) => return Err(format!("cannot open {}: {}", root.display(), in_words(e))),
        };
        // The file system that the path starts on responds; nothing else is known about it yet.
        let fs = rustix::fs::fstatfs(&place.fd).doing("statfs", root).map_err(|e| e.to_string())?;
        if REMOTE.contains(&(fs.f_type as u64)) {
            return Err(format!("{} is on a network or FUSE file system, which may hang: not entered", root.display()));
        }
        let dir = open_dir(&place.fd, c".").doing("open directory", root).map_err(|e| e.to_string())?;
        let st = stat(&dir, c"").doing("stat", root).map_err(|e| e.to_string())?;
        // Through procfs it may be in another mount namespace, where a path from the root leads elsewhere.
        let path = place.path().filter(|_| !root.starts_with("/proc")).unwrap_or_else(|| root.to_owned());
        Ok(Some((dir, st, path)))
    }

    fn root(&mut self, dir: &OwnedFd, st: &Statx, path: &Path) {
        let path = path.as_os_str().as_encoded_bytes();
        self.roots.push(path.to_vec());
        self.note(path, st);
        if self.may_contain(dir, path, st) {
            self.directory((dir, c""), path, &Stamp::of(st), 0);
        }
    }

    /// Whether a directory, on the file system of `at`, was not walked yet and may contain something. It cannot have two
    /// links: if it is seen twice, two mounts lead to it.
    fn may_contain(&mut self, at: &OwnedFd, path: &[u8], st: &Statx) -> bool {
        let is_new = self.seen.insert((device_of(st), st.stx_ino)) && !self.look.has_another_path(path, &Stamp::of(st));
        let may = is_new && !self.is_empty(at, st);
        self.unsettled += usize::from(!may);
        may
    }

    fn note(&mut self, path: &[u8], st: &Statx) {
        if let Some(at) = self.born.and_then(|born| born.place(path)) {
            self.out.born.entry(at).or_insert(*st);
        }
    }

    /// Whether a directory on the file system of `at` is known to be empty without listing it. An unreadable directory
    /// is a gap, empty or not: otherwise it would become one as soon as its owner creates something in it.
    fn is_empty(&mut self, at: &OwnedFd, st: &Statx) -> bool {
        st.stx_size == EMPTY && st.stx_mode & 0o444 == 0o444 && self.type_of(at, st) == TMPFS
    }

    fn type_of(&mut self, at: &OwnedFd, st: &Statx) -> u64 {
        *self.types.entry(device_of(st)).or_insert_with(|| type_of(at))
    }

    fn unlisted(&mut self, what: &str, path: &[u8], place: (&OwnedFd, &CStr), e: Errno) {
        let why = format!("cannot {what} {}: {}", Text::from(path), in_words(e));
        self.not_listed(Level::Partial, why, path, place);
    }

    fn not_listed(&mut self, level: Level, why: String, path: &[u8], place: (&OwnedFd, &CStr)) {
        self.unsettled += 1;
        self.out.not_listed(level, why, path, place);
    }

    fn failed(&mut self, what: &str, path: &[u8], e: Errno) {
        self.unsettled += 1;
        self.out.gap(Level::Partial, format!("cannot {what} {}: {}", Text::from(path), in_words(e)));
    }

    /// The directory `name` of `dir`, or `dir` itself if `name` is empty.
    fn directory(&mut self, (dir, name): (&OwnedFd, &CStr), path: &[u8], stamp: &Stamp, depth: usize) {
        if self.look.passes_over(path, stamp) {
            return;
        }
        let unsettled = self.unsettled;
        let itself = if name.is_empty() { c"." } else { name };
        let result = match self.look.below(path, stamp) {
            Some(below) if below.is_empty() => Ok(()),
            Some(below) => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let place = rustix::fs::openat(dir, itself, flags, Mode::empty());
                place.map(|place| self.go_below(&place, path, &below, depth))
            }
            None => open_dir(dir, itself).map(|place| self.list(&place, path, stamp, depth)),
        };
        match result {
            Ok(()) => {}
            // It matters only if it comes back.
            Err(Errno::NOENT) => self.not_listed(Level::Full, String::new(), path, (dir, name)),
            Err(e) => self.unlisted("open directory", path, (dir, name), e),
        }
        let is_complete = self.unsettled == unsettled;
        self.unsettled += usize::from(!self.look.visited(path, is_complete));
    }

    /// The directories in a directory that is not listed again.
    fn go_below(&mut self, dir: &OwnedFd, path: &[u8], below: &[CString], depth: usize) {
        for name in below {
            let full = join(path, name);
            match stat(dir, name) {
                Ok(st) if is_mount(&st, device_of(&st)) => self.enter_below(dir, name, &full, &Below::Mount, depth),
                Ok(st) if is_directory(&st) && self.may_contain(dir, &full, &st) => {
                    self.enter_below(dir, name, &full, &Below::Directory(Stamp::of(&st)), depth);
                }
                Ok(_) => {}
                Err(Errno::NOENT) => self.not_listed(Level::Full, String::new(), &full, (dir, name)),
                Err(e) => self.failed("stat", &full, e),
            }
        }
    }

    /// Lists a directory that was `seen` before it was opened.
    fn list(&mut self, dir: &OwnedFd, path: &[u8], seen: &Stamp, depth: usize) {
        let (mut id, mut stamp, mut watch) = (seen.id(), None, None);
        if self.look.keeps() {
            let began = file_clock_ns();
            let st = match stat(dir, c"") {
                Ok(st) => st,
                Err(e) => return self.unlisted("stat", path, (dir, c""), e),
            };
            let f_type = self.type_of(dir, &st);
            id = Stamp::of(&st).id();
            watch = self.look.watch(dir, f_type, path);
            stamp = Stamp::lasting(&st, f_type, began);
        }
        let (dev, ..) = id;
        let mut files: Vec<File> = Vec::new();
        let mut directories: Vec<CString> = Vec::new();
        let mut below: Vec<(CString, Below)> = Vec::new();
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut entries = RawDir::new(dir.as_fd(), &mut buffer[..]);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // Removed since it was opened (getdents(2)): so are its contents.
                Err(Errno::NOENT) => break,
                Err(e) => {
                    stamp = None;
                    self.unlisted("list", path, (dir, c""), e);
                    break;
                }
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let st = match stat(dir, name) {
                Ok(st) => st,
                // Removed since it was listed.
                Err(Errno::NOENT) => continue,
                Err(e) => {
                    stamp = None;
                    self.failed("stat", &join(path, name), e);
                    continue;
                }
            };
            if is_mount(&st, dev) {
                // Another mount may take its place.
                stamp = None;
                self.unsettled += 1;
                directories.push(name.to_owned());
                if self.mounts_too {
                    below.push((name.to_owned(), Below::Mount));
                }
                continue;
            }
            let full = join(path, name);
            self.note(&full, &st);
            files.push(record(&st, &full, FileType::from_raw_mode(u32::from(st.stx_mode))));
            if is_directory(&st) {
                directories.push(name.to_owned());
                if self.may_contain(dir, &full, &st) {
                    // A btrfs subvolume has its own device and is not a mount.
                    below.push((name.to_owned(), Below::Directory(Stamp::of(&st))));
                }
            }
        }
        self.buffer = buffer;
        self.look.add(path, New { id, stamp, watch, files, below: directories });
        for (name, what) in below {
            self.enter_below(dir, &name, &join(path, &name), &what, depth);
        }
    }

    fn enter_below(&mut self, dir: &OwnedFd, name: &CStr, full: &[u8], what: &Below, depth: usize) {
        if depth >= DEPTH {
            let why = format!("{} is deeper than {DEPTH} levels: not entered", Text::from(full));
            return self.not_listed(Level::Partial, why, full, (dir, name));
        }
        match what {
            Below::Mount => self.mount(dir, name, full, depth),
            Below::Directory(stamp) => self.directory((dir, name), full, stamp, depth + 1),
        }
    }

    /// A mount below a root: the mount kind reports it, and its contents are read if it is a known mount.
    fn mount(&mut self, dir: &OwnedFd, name: &CStr, path: &[u8], depth: usize) {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
            Ok(place) => place,
            Err(Errno::NOENT) => return,
            Err(e) => return self.failed("open", path, e),
        };
        let all = self.known.is_none();
        match self.mounts.of_fd(place.as_fd()) {
            Some(mount) if mount.nature == Nature::Local => {}
            Some(mount) if mount.nature == Nature::Kernel || OF_SESSIONS.contains(&mount.fs_type.as_ref()) => return,
            Some(mount) if all => {
                let why = match mount.nature {
                    Nature::Remote => "a network or FUSE file system, which may hang",
                    _ => "a file system that leakcheck does not know",
                };
                let why = format!("{} is on {}, {why}: not entered", Text::from(path), mount.fs_type);
                return self.out.gap(Level::Partial, why);
            }
            None if all => {
                let why = format!("{} is a mount that is not in mountinfo: not entered", Text::from(path));
                return self.out.gap(Level::Partial, why);
            }
            // A new one is reported as a mount.
            Some(_) | None => return,
        }
        self.enter(&place, path, depth);
    }

    /// What is in a mount.
    fn enter(&mut self, place: &OwnedFd, path: &[u8], depth: usize) {
        let st = match stat(place, c"") {
            Ok(st) => st,
            Err(e) => return self.failed("stat", path, e),
        };
        let submount = Submount { path: Text::from(path), id: number(place.as_fd()), dev: device_of(&st) };
        if !is_directory(&st) || self.known.is_some_and(|known| !known.contains(&submount)) {
            return;
        }
        self.out.submounts.push(submount);
        if self.may_contain(place, path, &st) {
            self.directory((place, c""), path, &Stamp::of(&st), depth + 1);
        }
    }
}

/// What is below a directory.
enum Below {
    Directory(Stamp),
    Mount,
}

/// Whether another mount starts there. Before Linux 5.8, only another device shows it.
fn is_mount(st: &Statx, dev: u64) -> bool {
    let is_known = st.stx_attributes_mask.bits() & MOUNT_ROOT != 0;
    if is_known { st.stx_attributes.bits() & MOUNT_ROOT != 0 } else { device_of(st) != dev }
}

fn is_directory(st: &Statx) -> bool {
    FileType::from_raw_mode(u32::from(st.stx_mode)) == FileType::Directory
}

/// Deleted files that only a mapping keeps alive.
pub(crate) fn mapped(samples: &mut [Sample]) -> Vec<File> {
    samples.iter_mut().flat_map(|s| std::mem::take(&mut s.deleted_maps)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_a_tmpfs_with_anything_in_it_has_not_the_size_of_an_empty_one() {
        use std::fs;
        let top = tempfile::tempdir_in("/dev/shm").unwrap();
        assert!(is_tmpfs(&fs::File::open(top.path()).unwrap().into()), "/dev/shm is no tmpfs");
        let (dir, other) = (top.path().join("dir"), top.path().join("other"));
        [&dir, &other].into_iter().for_each(|dir| fs::create_dir(dir).unwrap());
        let size = |dir: &Path| stat(fs::File::open(dir).unwrap(), c"").unwrap().stx_size;
        let name = dir.join("name");
        let fifo = || rustix::fs::mknodat(rustix::fs::CWD, &name, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let moved = || {
            fs::write(other.join("from"), "").unwrap();
            fs::rename(other.join("from"), &name).unwrap();
        };
        fs::write(top.path().join("file"), "").unwrap();
        let linked = || fs::hard_link(top.path().join("file"), &name).unwrap();
        let ways: [&dyn Fn(); 6] = [
            &|| fs::write(&name, "").unwrap(),
            &|| fs::create_dir(&name).unwrap(),
            &|| std::os::unix::fs::symlink("x", &name).unwrap(),
            &linked,
            &fifo,
            &moved,
        ];
        for way in ways {
            assert_eq!(size(&dir), EMPTY);
            way();
            assert_ne!(size(&dir), EMPTY);
            fs::remove_file(&name).or_else(|_| fs::remove_dir(&name)).unwrap();
        }
        assert_eq!((size(&dir), size(&other)), (EMPTY, EMPTY));
    }
}
