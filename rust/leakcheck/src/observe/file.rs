//! Files of every type below declared roots.
//!
//! A root is walked with descriptors, without following links, and without touching access times where that is permitted. Local
//! file systems that are mounted below it are walked too; one that may hang is not entered, nor is a root on one.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, RawDir, Statx, StatxFlags, accessat};
use rustix::io::Errno;

use super::arena::ObservedArena;
use super::born::Born;
use super::context::Context;
use super::reach::{self, Known, Mounts, Nature, Refusal};
use super::source::Sample;
use crate::error::Error;
use crate::kind::Kind;
use crate::resource::{File, encode_device};
use crate::snapshot::{Coverage, Directory, Gap, Level, Submount, Unseen};
use crate::text::Text;

/// Roots of the file kind when none are declared; [`CGROUPS`] too, where it is a tmpfs.
pub const DEFAULT_ROOTS: [&str; 4] = ["/tmp", "/var/tmp", "/dev/shm", "/run"];
/// Where cgroup v1 hierarchies are mounted, in a tmpfs: who takes it for a hierarchy makes plain files and directories in it.
pub(super) const CGROUPS: &str = "/sys/fs/cgroup";
/// Directories deeper than this are not entered: each level holds a descriptor.
pub(super) const DEPTH: usize = 200;
/// `STATX_ATTR_MOUNT_ROOT` (Linux 5.8).
pub(super) const MOUNT_ROOT: u64 = 0x2000;
/// Magic numbers (statfs(2)) of file systems whose server may not answer: NFS, CIFS, SMB2, FUSE, 9p, Ceph, AFS, Coda.
pub(super) const REMOTE: [u64; 8] =
    [0x6969, 0xff53_4d42, 0xfe53_4d42, 0x6573_5546, 0x0102_1997, 0x00c3_6400, 0x5346_414f, 0x7375_7245];
/// `TMPFS_MAGIC` (statfs(2)).
const TMPFS: u64 = 0x0102_1994;
/// The size of a directory of a tmpfs that has nothing in it: each name adds 20, `.` and `..` too (`BOGO_DIRENT_SIZE`, mm/shmem.c).
pub(super) const EMPTY: u64 = 40;
/// FUSE file systems of a desktop session, below every user's `/run/user`: they show documents and remote places, and keep nothing.
const OF_SESSIONS: [&[u8]; 2] = [b"fuse.portal", b"fuse.gvfsd-fuse"];

/// What a walk gave.
#[derive(Default)]
pub(crate) struct Walk {
    pub(crate) files: Vec<File>,
    pub(crate) gaps: Vec<Coverage>,
    /// Directories that were not listed.
    pub(crate) unlisted: Vec<Gap>,
    pub(crate) submounts: Vec<Submount>,
    /// What is there of that which an arena had at first, by its number there.
    pub(super) born: HashMap<usize, Statx>,
}

impl Walk {
    pub(super) fn gap(&mut self, level: Level, reason: String) {
        // One unreadable directory in a thousand is told as clearly as a thousand.
        if self.gaps.len() < 8 {
            self.gaps.push(Coverage { level, reason });
        }
    }

    fn root_not_listed(&mut self, root: &Path, reason: String) {
        let place = Unseen::Directory(Directory { path: Text::from(root), ..Directory::default() });
        self.unlisted.push(Gap { kind: Kind::File, level: Level::Partial, reason, place });
    }

    /// Notes that the directory `name` of `dir`, or `dir` itself where that is empty, was not listed, or not to its end, so that
    /// nothing below it is comparable.
    fn not_listed(&mut self, level: Level, reason: String, path: &[u8], (dir, name): (&OwnedFd, &CStr)) {
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

/// Whether there is a tmpfs at [`CGROUPS`].
pub(super) fn is_tmpfs_of_cgroups() -> bool {
    let place = reach::open(Path::new(CGROUPS), None, true, &mut Mounts::of(None));
    place.is_ok_and(|place| is_tmpfs(&place.fd))
}

pub(super) fn is_tmpfs(fd: &OwnedFd) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|fs| fs.f_type as u64 == TMPFS)
}

/// Walks every root. Of the mounts below them those in `known` alone are entered, or all, where it is none.
pub(super) fn walk(roots: &[PathBuf], context: Context<'_>, known: Option<&[Submount]>) -> Walk {
    let mut walker = Walker::new(context.mounts(), None, known);
    for root in roots {
        match walker.open_root(root) {
            Ok(Some((dir, st, path))) => walker.root(&dir, &st, &path),
            // A root that does not exist holds no file.
            Ok(None) => {}
            Err(why) => walker.out.root_not_listed(root, why),
        }
    }
    walker.end()
}

/// Walks the arena's fresh file systems, as [`walk`] does roots, and what else was mounted in it before the run. An overlay's upper
/// directory lies in one of them, or in the arena's own overlay.
pub(super) fn walk_arena(arena: &ObservedArena, context: Context<'_>, known: Option<&[Submount]>) -> Walk {
    let mut walker = Walker::new(context.mounts(), Some(&arena.born), known);
    for (path, root) in &arena.view.roots {
        // There each look would ask for all the hierarchies, which hold no file.
        walker.mounts_too = path != Path::new(CGROUPS);
        match open_dir(root, c".").and_then(|dir| Ok((stat(&dir, c"")?, dir))) {
            Ok((st, dir)) => walker.root(&dir, &st, path),
            Err(e) => walker.out.root_not_listed(path, Error::io("open directory", path, e).to_string()),
        }
    }
    let elsewhere = |mount: &Known| {
        let path = Path::new(OsStr::from_bytes(mount.target.as_ref()));
        let fresh = !arena.first_devices.contains(&mount.dev) && mount.fs_type.as_ref() != b"overlay";
        fresh && mount.nature == Nature::Local && !arena.view.roots.iter().any(|(root, _)| path.starts_with(root))
    };
    let others: Vec<Known> = walker.mounts.all().into_iter().filter(elsewhere).collect();
    let root = if others.is_empty() { None } else { arena.view.root().ok() };
    for mount in others {
        let path = Path::new(OsStr::from_bytes(mount.target.as_ref()));
        // Else another mount covers it, or it is one of the run, which is reported as a mount.
        if let Some(place) = root.as_ref().and_then(|root| reach::open(path, Some(root), true, &mut walker.mounts).ok())
        {
            walker.enter(&place.fd, mount.target.as_ref(), 0);
        }
    }
    walker.end()
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

struct Walker<'a> {
    out: Walk,
    mounts: Mounts,
    known: Option<&'a [Submount]>,
    /// Whether mounts below a root are looked at.
    mounts_too: bool,
    /// Directories that were walked: a file system may be bound twice, or two roots may be one.
    seen: HashSet<(u64, u64)>,
    /// Devices, and whether each is a tmpfs.
    tmpfs: HashMap<u64, bool>,
    /// What the arena had at first, of which the walk notes what is there now.
    born: Option<&'a Born>,
    /// One buffer for all levels: the walk recurses, and a thread's stack is small.
    buffer: Vec<MaybeUninit<u8>>,
}

impl<'a> Walker<'a> {
    fn new(mounts: Mounts, born: Option<&'a Born>, known: Option<&'a [Submount]>) -> Self {
        let buffer = vec![MaybeUninit::uninit(); 16384];
        Walker {
            out: Walk::default(),
            mounts,
            known,
            mounts_too: true,
            seen: HashSet::new(),
            tmpfs: HashMap::new(),
            born,
            buffer,
        }
    }

    fn end(mut self) -> Walk {
        number_links(&mut self.out.files);
        self.out
    }

    fn open_root(&mut self, root: &Path) -> Result<Option<(OwnedFd, Statx, PathBuf)>, String> {
        let place = match reach::open(root, None, true, &mut self.mounts) {
            Ok(place) => place,
            Err(Refusal::Kernel(Errno::NOENT)) => return Ok(None),
            Err(e) => return Err(format!("open {}: {e}", root.display())),
        };
        // Of the file system that the path starts on nothing is known yet, but that it answers.
        let fs = rustix::fs::fstatfs(&place.fd).map_err(|e| Error::io("statfs", root, e).to_string())?;
        if REMOTE.contains(&(fs.f_type as u64)) {
            return Err(format!("{} is on a network or FUSE file system, which may hang: not entered", root.display()));
        }
        let dir = open_dir(&place.fd, c".").map_err(|e| Error::io("open directory", root, e).to_string())?;
        let st = stat(&dir, c"").map_err(|e| Error::io("stat", root, e).to_string())?;
        // Through procfs it may be in another mount namespace, where a path from its root means something else.
        let path = place.path().filter(|_| !root.starts_with("/proc")).unwrap_or_else(|| root.to_owned());
        Ok(Some((dir, st, path)))
    }

    fn root(&mut self, dir: &OwnedFd, st: &Statx, path: &Path) {
        let path = path.as_os_str().as_encoded_bytes();
        self.note(path, st);
        if self.seen.insert((device_of(st), st.stx_ino)) && !self.is_empty(dir, st) {
            self.descend(dir, path, device_of(st), 0);
        }
    }

    fn note(&mut self, path: &[u8], st: &Statx) {
        if let Some(at) = self.born.and_then(|born| born.place(path)) {
            self.out.born.insert(at, *st);
        }
    }

    /// Whether a directory on the file system of `at` is known to have nothing in it, without being listed. One that may not be listed
    /// is a gap, empty or not: else it would be one as soon as its owner makes something in it.
    fn is_empty(&mut self, at: &OwnedFd, st: &Statx) -> bool {
        st.stx_size == EMPTY
            && st.stx_mode & 0o444 == 0o444
            && *self.tmpfs.entry(device_of(st)).or_insert_with(|| is_tmpfs(at))
    }

    fn unlisted(&mut self, what: &str, path: &[u8], place: (&OwnedFd, &CStr), e: Errno) {
        let why = format!("{what} {}: {}", Text::from(path), std::io::Error::from(e));
        self.out.not_listed(Level::Partial, why, path, place);
    }

    fn failed(&mut self, what: &str, path: &[u8], e: Errno) {
        self.out.gap(Level::Partial, format!("{what} {}: {}", Text::from(path), std::io::Error::from(e)));
    }

    fn descend(&mut self, dir: &OwnedFd, path: &[u8], dev: u64, depth: usize) {
        let mut below: Vec<(CString, Below)> = Vec::new();
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut entries = RawDir::new(dir.as_fd(), &mut buffer[..]);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // Removed since it was opened (getdents(2)): what was in it is not there either.
                Err(Errno::NOENT) => break,
                Err(e) => {
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
                // Gone since it was listed.
                Err(Errno::NOENT) => continue,
                Err(e) => {
                    self.failed("stat", &join(path, name), e);
                    continue;
                }
            };
            if is_mount(&st, dev) {
                if self.mounts_too {
                    below.push((name.to_owned(), Below::Mount));
                }
                continue;
            }
            let class = FileType::from_raw_mode(u32::from(st.stx_mode));
            let full = join(path, name);
            self.note(&full, &st);
            self.out.files.push(record(&st, &full, class));
            // Two links to a directory there are none: seen twice, it is reached by two mounts.
            if class == FileType::Directory
                && self.seen.insert((device_of(&st), st.stx_ino))
                && !self.is_empty(dir, &st)
            {
                // A subvolume of btrfs has a device of its own and is no mount.
                below.push((name.to_owned(), Below::Directory(device_of(&st))));
            }
        }
        self.buffer = buffer;
        for (name, what) in below {
            let full = join(path, &name);
            if depth >= DEPTH {
                let why = format!("{} is deeper than {DEPTH} levels: not entered", Text::from(&*full));
                self.out.not_listed(Level::Partial, why, &full, (dir, &name));
                continue;
            }
            match what {
                Below::Mount => self.mount(dir, &name, &full, depth),
                Below::Directory(dev) => match open_dir(dir, &name) {
                    Ok(sub) => self.descend(&sub, &full, dev, depth + 1),
                    // It matters only if it comes back.
                    Err(Errno::NOENT) => self.out.not_listed(Level::Full, String::new(), &full, (dir, &name)),
                    Err(e) => self.unlisted("open directory", &full, (dir, &name), e),
                },
            }
        }
    }

    /// A mount below a root: the mount kind has it, and what is in it is looked at if it is one of the known.
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
                let why = format!("{} is a mount that mountinfo does not list: not entered", Text::from(path));
                return self.out.gap(Level::Partial, why);
            }
            // One that was not there before is reported as a mount.
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
        let submount = Submount { path: Text::from(path), id: reach::number(place.as_fd()), dev: device_of(&st) };
        if FileType::from_raw_mode(u32::from(st.stx_mode)) != FileType::Directory
            || self.known.is_some_and(|known| !known.contains(&submount))
        {
            return;
        }
        self.out.submounts.push(submount);
        if self.seen.insert((device_of(&st), st.stx_ino)) && !self.is_empty(place, &st) {
            match open_dir(place, c".") {
                Ok(sub) => self.descend(&sub, path, device_of(&st), depth + 1),
                Err(e) => self.unlisted("open directory", path, (place, c""), e),
            }
        }
    }
}

/// What is below a directory.
enum Below {
    /// A directory on this device.
    Directory(u64),
    Mount,
}

/// Whether another mount begins there. Before Linux 5.8 only another device speaks for it.
fn is_mount(st: &Statx, dev: u64) -> bool {
    let told = st.stx_attributes_mask.bits() & MOUNT_ROOT != 0;
    if told { st.stx_attributes.bits() & MOUNT_ROOT != 0 } else { device_of(st) != dev }
}

fn join(path: &[u8], name: &CStr) -> Vec<u8> {
    [path.strip_suffix(b"/").unwrap_or(path), b"/", name.to_bytes()].concat()
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
        let fifo = || rustix::fs::mknodat(CWD, &name, FileType::Fifo, Mode::RUSR, 0).unwrap();
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
