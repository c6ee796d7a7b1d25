//! Opening a path without waiting for a file system.
//!
//! A server behind FUSE, NFS and their like may never answer, and not even SIGKILL ends who waits for it. So a path is walked
//! component by component, and nothing inside a mount is asked for before mountinfo has told what that mount is.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::proc_root::read_file;
use super::read::read_all;
use super::sys;
use crate::arena::{ArenaView, proc_path};
use crate::parse::{fdinfo, mountinfo};
use crate::resource::encode_device;
use crate::text::Text;

/// What may be expected of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nature {
    /// The kernel answers at once, and what is in it are files.
    Local,
    /// The kernel answers at once, and what is in it are its own objects, which other kinds look at.
    Kernel,
    /// Somebody else answers, or nobody.
    Remote,
    /// Not known to this program.
    Other,
}

const LOCAL: [&str; 34] = [
    "aufs",
    "bcachefs",
    "btrfs",
    "cramfs",
    "devtmpfs",
    "erofs",
    "exfat",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "hfs",
    "hfsplus",
    "hugetlbfs",
    "iso9660",
    "jffs2",
    "jfs",
    "minix",
    "msdos",
    "nilfs2",
    "ntfs3",
    "overlay",
    "ramfs",
    "reiserfs",
    "romfs",
    "rootfs",
    "squashfs",
    "tmpfs",
    "ubifs",
    "udf",
    "ufs",
    "vfat",
    "xfs",
    "zfs",
];
const KERNEL: [&str; 23] = [
    "binder",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "cpuset",
    "debugfs",
    "devpts",
    "efivarfs",
    "fusectl",
    "mqueue",
    "nfsd",
    "nsfs",
    "proc",
    "pstore",
    "resctrl",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "smackfs",
    "sysfs",
    "tracefs",
];
/// The kernel's own bound for symbolic links in one path (path_resolution(7)).
const LINKS: usize = 40;

impl Nature {
    fn of(fs_type: &[u8]) -> Self {
        let Ok(name) = std::str::from_utf8(fs_type) else { return Nature::Other };
        if mountinfo::is_served(fs_type) {
            Nature::Remote
        } else if LOCAL.contains(&name) {
            Nature::Local
        } else if KERNEL.contains(&name) {
            Nature::Kernel
        } else {
            Nature::Other
        }
    }
}

/// A mount, as far as a walk has to know it.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) nature: Nature,
    pub(crate) dev: u64,
    pub(crate) fs_type: Text,
    pub(crate) target: Text,
}

/// The mounts of a namespace by mountinfo's number, which is reused: to be read anew for each look.
#[derive(Debug)]
pub(crate) struct Mounts {
    table: PathBuf,
    known: HashMap<u64, Known>,
    /// Which may be entered by a path: those that were there before the run, by [`number`]. What the run mounts over a path may hang,
    /// though its type does not say so: an overlay of a FUSE file system, a disk whose image is on one.
    old: Option<Arc<HashSet<u64>>>,
}

impl Mounts {
    /// Those of the calling process, or of the first process of the arena.
    pub(crate) fn of(arena: Option<&ArenaView>) -> Self {
        let table =
            if arena.is_some() { proc_path(arena, "1/mountinfo") } else { "/proc/thread-self/mountinfo".into() };
        Mounts { table, known: HashMap::new(), old: None }
    }

    /// Lets none be entered by a path from now on but these.
    pub(crate) fn limit_to(&mut self, old: Arc<HashSet<u64>>) {
        self.old = Some(old);
    }

    /// Forgets what was read.
    pub(crate) fn forget(&mut self) {
        self.known.clear();
    }

    /// The mount that a descriptor is on; none when it is in none of the namespaces that were read. Asks no file system.
    pub(crate) fn of_fd(&mut self, fd: BorrowedFd<'_>) -> Option<Known> {
        let info = read_file(format!("/proc/thread-self/fdinfo/{}", fd.as_raw_fd())).ok()?;
        let id = u64::from(fdinfo::parse(&info).mnt_id?);
        if !self.known.contains_key(&id) {
            let text = read_file(&self.table).ok()?;
            self.add(&text);
        }
        self.known.get(&id).cloned()
    }

    /// All of them, by path.
    pub(crate) fn all(&mut self) -> Vec<Known> {
        if let Ok(text) = read_file(&self.table) {
            self.add(&text);
        }
        let mut all: Vec<Known> = self.known.values().cloned().collect();
        all.sort_by(|a, b| a.target.cmp(&b.target));
        all
    }

    /// Whether a mount was not there before the run, nor its file system in another one that is there still: a bind mount
    /// of that answers as it does.
    fn is_new(&self, fd: BorrowedFd<'_>, dev: u64) -> bool {
        let Some(old) = &self.old else { return false };
        if old.contains(&number(fd)) {
            return false;
        }
        let ns = self.table.parent().and_then(|p| std::fs::File::open(p.join("ns/mnt")).ok());
        let ns = ns.and_then(|ns| sys::mount_ns_id(ns.as_fd())).unwrap_or(0);
        let shows = |id: &u64| {
            let device = sys::MountStat::of(*id, ns).map(|m| m.device());
            device.is_ok_and(|(major, minor)| encode_device(major, minor) == dev)
        };
        let by_table = || self.known.iter().any(|(id, known)| old.contains(id) && known.dev == dev);
        !old.iter().any(shows) && !by_table()
    }

    /// Adds the mounts that a process has whose directory in `/proc` is `dir` or above it.
    fn add_of_process(&mut self, dir: BorrowedFd<'_>) {
        for name in [c"mountinfo", c"../mountinfo", c"../../../mountinfo"] {
            let opened = rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            if let Ok(text) = opened.and_then(|file| read_all(file.as_fd())) {
                return self.add(&text);
            }
        }
    }

    fn add(&mut self, text: &[u8]) {
        for mount in mountinfo::parse(text).unwrap_or_default() {
            let known = Known {
                nature: Nature::of(&mount.fs_type),
                dev: encode_device(mount.major, mount.minor),
                fs_type: Text::from(&*mount.fs_type),
                target: Text::from(&*mount.mount_point),
            };
            self.known.insert(mount.id.into(), known);
        }
    }
}

/// Where a path leads: a descriptor opened with `O_PATH` on a file system that answers.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) fd: OwnedFd,
    pub(crate) st: Statx,
}

impl Place {
    pub(crate) fn class(&self) -> FileType {
        FileType::from_raw_mode(u32::from(self.st.stx_mode))
    }

    /// Its path without links.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        let text = rustix::fs::readlink(through(self.fd.as_fd()), Vec::with_capacity(256)).ok()?;
        Some(PathBuf::from(OsStr::from_bytes(text.as_bytes())))
    }

    /// Opens it for more than its place.
    pub(crate) fn reopen(&self, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        if self.class() == FileType::Directory {
            return rustix::fs::openat(&self.fd, c".", flags | OFlags::CLOEXEC, Mode::empty());
        }
        rustix::fs::open(through(self.fd.as_fd()), flags | OFlags::CLOEXEC, Mode::empty())
    }
}

fn through(fd: BorrowedFd<'_>) -> String {
    format!("/proc/thread-self/fd/{}", fd.as_raw_fd())
}

/// Why a path was not opened.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The kernel's answer.
    Kernel(Errno),
    /// It leads into a file system that may not answer.
    MayHang(String),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::Kernel(errno) => std::io::Error::from(*errno).fmt(f),
            Refusal::MayHang(why) => f.write_str(why),
        }
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Refusal::Kernel(errno)
    }
}

impl Refusal {
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Refusal::Kernel(Errno::NOENT))
    }
}

/// Opens `path`, below `root` if one is given, links inside leading nowhere else then. `last` tells whether a link at its end is
/// followed.
///
/// # Errors
/// [`Refusal`]; a file system that the walk starts on is trusted, as this program itself came from it.
pub(crate) fn open(
    path: &Path,
    root: Option<&OwnedFd>,
    last: bool,
    mounts: &mut Mounts,
) -> std::result::Result<Place, Refusal> {
    let mut walk = Walk { root, mounts, links: 0, elsewhere: false };
    let mut at = if path.is_absolute() || root.is_some() { walk.top()? } else { here(c".")? };
    let mut todo: Vec<Vec<u8>> = Vec::new();
    push(&mut todo, path.as_os_str().as_bytes());
    while let Some(name) = todo.pop() {
        let next = walk.step(&at, &name)?;
        if next.class() != FileType::Symlink || todo.is_empty() && !last {
            at = next;
            continue;
        }
        walk.links += 1;
        if walk.links > LINKS {
            return Err(Errno::LOOP.into());
        }
        if walk.is_magic(&at, &name) {
            at = walk.jump(&at, &name)?;
            continue;
        }
        let text = rustix::fs::readlinkat(&next.fd, c"", Vec::with_capacity(256))?;
        if text.as_bytes().first() == Some(&b'/') {
            at = walk.top()?;
        }
        push(&mut todo, text.as_bytes());
    }
    Ok(at)
}

/// Puts the components of a path on the stack, the first one on top.
fn push(todo: &mut Vec<Vec<u8>>, path: &[u8]) {
    let names = path.split(|b| *b == b'/').rev().filter(|name| !matches!(*name, b"" | b"."));
    todo.extend(names.map(<[u8]>::to_vec));
}

fn here(path: &std::ffi::CStr) -> std::result::Result<Place, Refusal> {
    place(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// The number of the mount that a descriptor is on: the unique one where the kernel has it (Linux 6.8), else mountinfo's, which is
/// reused; 0 where it tells none.
pub(super) fn number(fd: BorrowedFd<'_>) -> u64 {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    let mask = StatxFlags::from_bits_retain(sys::STATX_MNT_ID_UNIQUE);
    rustix::fs::statx(fd, c"", flags, mask).ok().and_then(|st| sys::mount_of(&st)).unwrap_or(0)
}

/// The numbers of all mounts here, or in the arena.
///
/// # Errors
/// When neither the kernel nor mountinfo lists them.
pub(crate) fn numbers(arena: Option<&ArenaView>) -> crate::error::Result<HashSet<u64>> {
    let listed = match arena {
        None => sys::listmount(0),
        Some(_) => std::fs::File::open(proc_path(arena, "1/ns/mnt")).and_then(|namespace| {
            let id = sys::mount_ns_id(namespace.as_fd()).ok_or_else(std::io::Error::last_os_error)?;
            sys::listmount(id)
        }),
    };
    if let Ok(ids) = listed {
        return Ok(ids.into_iter().collect());
    }
    let table = Mounts::of(arena).table;
    let text = read_file(&table)?;
    let mounts =
        mountinfo::parse(&text).map_err(|e| crate::error::Error::usage(format!("{}: {e}", table.display())))?;
    Ok(mounts.iter().map(|m| u64::from(m.id)).collect())
}

fn place(fd: OwnedFd) -> std::result::Result<Place, Refusal> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let st = rustix::fs::statx(&fd, c"", flags, StatxFlags::TYPE | StatxFlags::INO)?;
    Ok(Place { fd, st })
}

struct Walk<'a> {
    root: Option<&'a OwnedFd>,
    mounts: &'a mut Mounts,
    links: usize,
    /// Whether it has come into a mount namespace that may be another one, by a link of procfs.
    elsewhere: bool,
}

impl Walk<'_> {
    fn top(&self) -> std::result::Result<Place, Refusal> {
        match self.root {
            None => here(c"/"),
            Some(root) => place(rustix::fs::openat(root, c".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?),
        }
    }

    fn step(&mut self, at: &Place, name: &[u8]) -> std::result::Result<Place, Refusal> {
        if name == b".." && self.root.is_some_and(|root| is_same(at, root)) {
            return self.top();
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat2(&at.fd, name, flags, Mode::empty(), ResolveFlags::NO_XDEV) {
            Ok(fd) => place(fd),
            // Another mount begins here. Before Linux 5.6 that is not told, and each component is asked.
            Err(Errno::XDEV | Errno::NOSYS) => {
                let fd = rustix::fs::openat(&at.fd, name, flags, Mode::empty())?;
                self.check(fd)
            }
            Err(e) => Err(e.into()),
        }
    }

    fn check(&mut self, fd: OwnedFd) -> std::result::Result<Place, Refusal> {
        match self.mounts.of_fd(fd.as_fd()) {
            Some(Known { nature: Nature::Remote, fs_type, target, .. }) => {
                let why =
                    format!("{target} is on {fs_type}, a network or FUSE file system, which may hang: not entered");
                Err(Refusal::MayHang(why))
            }
            Some(Known { target, dev, .. }) => {
                if !self.elsewhere && self.mounts.is_new(fd.as_fd(), dev) {
                    return Err(Refusal::MayHang(format!("{target} was mounted during the run: not entered")));
                }
                place(fd)
            }
            None => Err(Refusal::MayHang("it leads into a mount that mountinfo does not list: not entered".to_owned())),
        }
    }

    /// Whether a link is one that procfs makes up (proc(5)): it leads to a file, whatever its text says.
    fn is_magic(&mut self, at: &Place, name: &[u8]) -> bool {
        let textual = matches!(name, b"self" | b"thread-self" | b"mounts" | b"net");
        let on_proc = || rustix::fs::fstatfs(&at.fd).is_ok_and(|fs| fs.f_type as u64 == PROC_MAGIC);
        !textual && on_proc()
    }

    fn jump(&mut self, at: &Place, name: &[u8]) -> std::result::Result<Place, Refusal> {
        if self.root.is_some() {
            return Err(Errno::LOOP.into());
        }
        self.mounts.add_of_process(at.fd.as_fd());
        self.elsewhere = true;
        let fd = rustix::fs::openat(&at.fd, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        self.check(fd)
    }
}

/// `f_type` of procfs (statfs(2)).
const PROC_MAGIC: u64 = 0x9fa0;

fn is_same(at: &Place, root: &OwnedFd) -> bool {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let of = |st: &Statx| (st.stx_dev_major, st.stx_dev_minor, st.stx_ino);
    rustix::fs::statx(root, c"", flags, StatxFlags::INO).is_ok_and(|st| of(&st) == of(&at.st))
}

/// What is at a path, told without waiting for a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Nothing.
    Nothing,
    /// A directory.
    Directory,
    /// Something else.
    Other,
    /// A file system that may not answer, or one that may not be looked at.
    Hidden,
}

/// What is at `path`, links followed.
pub fn at(path: &Path) -> At {
    match open(path, None, true, &mut Mounts::of(None)) {
        Ok(place) if place.class() == FileType::Directory => At::Directory,
        Ok(_) => At::Other,
        Err(Refusal::Kernel(Errno::NOENT | Errno::NOTDIR)) => At::Nothing,
        Err(_) => At::Hidden,
    }
}

/// Mount points of local file systems below these directories, as mountinfo names them.
pub(crate) fn local_mounts_below(roots: &[PathBuf]) -> Vec<PathBuf> {
    let mut mounts = Mounts::of(None);
    let here = roots.iter().filter(|root| !root.starts_with("/proc"));
    let tops: Vec<PathBuf> = here.filter_map(|root| open(root, None, true, &mut mounts).ok()?.path()).collect();
    let text = read_file("/proc/thread-self/mountinfo").unwrap_or_default();
    let all = mountinfo::parse(&text).unwrap_or_default();
    let local = all.iter().filter(|m| Nature::of(&m.fs_type) == Nature::Local);
    let points = local.map(|m| PathBuf::from(OsStr::from_bytes(&m.mount_point)));
    points.filter(|point| tops.iter().any(|top| point != top && point.starts_with(top))).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn opened(path: &Path) -> std::result::Result<PathBuf, String> {
        let place = open(path, None, true, &mut Mounts::of(None)).map_err(|e| e.to_string())?;
        Ok(place.path().unwrap())
    }

    #[test]
    fn a_path_leads_where_the_kernel_says_that_it_leads() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/file"), "x").unwrap();
        symlink("a/b", dir.path().join("relative")).unwrap();
        symlink(dir.path().join("a"), dir.path().join("absolute")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        let held = std::fs::File::open(dir.path()).unwrap();
        let magic = format!("/proc/self/fd/{}/a", held.as_raw_fd());
        let below = ["a/b", "relative", "relative/..", "absolute/b", "a/./b/../file", "", "a//b/"];
        let paths = below.iter().map(|name| dir.path().join(name));
        for path in paths.chain(["/", "/proc/self/root/tmp", "/proc/self/cwd", magic.as_str()].map(PathBuf::from)) {
            assert_eq!(opened(&path), Ok(std::fs::canonicalize(&path).unwrap()), "{}", path.display());
        }
        assert_eq!(opened(Path::new("/dev/fd")).unwrap(), PathBuf::from(format!("/proc/{}/fd", std::process::id())));
        assert_eq!(at(&dir.path().join("a/file")), At::Other);
        assert_eq!(at(&dir.path().join("a/none/c")), At::Nothing);
        assert_eq!(at(&dir.path().join("loop")), At::Hidden);
    }

    #[test]
    fn a_link_at_the_end_is_followed_only_where_that_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        symlink("nowhere", &link).unwrap();
        let class = |last| open(&link, None, last, &mut Mounts::of(None)).map(|place| place.class());
        assert_eq!(class(false).unwrap(), FileType::Symlink);
        assert!(class(true).unwrap_err().is_missing());
    }

    #[test]
    fn below_a_root_no_link_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tmp")).unwrap();
        symlink("/tmp", dir.path().join("link")).unwrap();
        symlink("../../../../tmp", dir.path().join("tmp/up")).unwrap();
        let root = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        for path in ["/link", "link", "/tmp/up", "/../tmp"] {
            let place = open(Path::new(path), Some(&root), true, &mut Mounts::of(None)).unwrap();
            assert_eq!(place.path(), Some(dir.path().canonicalize().unwrap().join("tmp")), "{path}");
        }
    }

    #[test]
    fn file_systems_that_a_server_answers_for_are_told_by_their_type() {
        for fs_type in ["fuse", "fuse.sshfs", "nfs4", "9p", "autofs"] {
            assert_eq!(Nature::of(fs_type.as_bytes()), Nature::Remote, "{fs_type}");
        }
        assert_eq!(Nature::of(b"tmpfs"), Nature::Local);
        assert_eq!(Nature::of(b"fusectl"), Nature::Kernel);
        assert_eq!(Nature::of(b"wonderfs"), Nature::Other);
        let all = LOCAL.iter().chain(&KERNEL);
        let distinct: std::collections::HashSet<_> = all.clone().collect();
        assert_eq!(distinct.len(), all.count(), "each type has one nature");
    }

    #[test]
    fn every_mount_here_is_found_by_a_descriptor_on_it() {
        let mut mounts = Mounts::of(None);
        for path in ["/", "/proc"] {
            let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
            assert!(mounts.of_fd(fd.as_fd()).is_some(), "{path}");
        }
        let pipe = rustix::pipe::pipe().unwrap().0;
        assert!(mounts.of_fd(pipe.as_fd()).is_none(), "no namespace lists the kernel's own mounts");
    }
}
