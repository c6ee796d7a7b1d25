//! Opening a path without waiting for a file system.
//!
//! A server behind FUSE, NFS and their like may never answer, and not even SIGKILL ends a process that waits for it. So
//! a path is walked component by component, and nothing inside a mount is accessed before mountinfo has shown what that
//! mount is.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::mount_table::{Known, Mounts, Nature};
use super::proc_root::read_file;
use crate::error::in_words;
use crate::parse::mountinfo;

/// The kernel's limit for symbolic links in one path (path_resolution(7)).
const LINKS: usize = 40;

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

    /// Opens it with other flags than `O_PATH`.
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
    /// It leads into a file system that may hang.
    MayHang(String),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::Kernel(errno) => f.write_str(&in_words(errno)),
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

/// Opens `path`, below `root` if given; then links inside cannot lead out of it. `last` tells whether a link at its end
/// is followed.
///
/// # Errors
/// [`Refusal`]; the file system where the walk starts is trusted, since this program itself was loaded from it.
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

fn place(fd: OwnedFd) -> std::result::Result<Place, Refusal> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let st = rustix::fs::statx(&fd, c"", flags, StatxFlags::TYPE | StatxFlags::INO)?;
    Ok(Place { fd, st })
}

struct Walk<'a> {
    root: Option<&'a OwnedFd>,
    mounts: &'a mut Mounts,
    links: usize,
    /// Whether it has entered a mount namespace that may be another one, through a procfs link.
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
            // Another mount starts here. Before Linux 5.6 the kernel does not report it, and each component is checked.
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
            None => Err(Refusal::MayHang("it leads into a mount that is not in mountinfo: not entered".to_owned())),
        }
    }

    /// Whether it is a magic link of procfs (proc(5)): it leads to a file, whatever its text says.
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

/// The type of what is at a path, found without waiting for a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Nothing.
    Nothing,
    /// A directory.
    Directory,
    /// Something else.
    Other,
    /// A file system that may hang, or one that this user cannot access.
    Hidden,
}

/// The type of what is at `path`, following links.
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
}
