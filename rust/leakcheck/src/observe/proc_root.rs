//! Access to `/proc`, which a run may have covered: by another file system on `/proc` or on one `/proc/PID`, by a
//! procfs of another pid namespace or one that shows less. Then a private detached procfs is used (fsopen(2),
//! fsmount(2), Linux 5.2). If the observer may not create one, the covered part is a gap.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstatfs, openat, openat2, readlinkat};
use rustix::io::Errno;

use super::read::read_all;
use super::sys;
use crate::error::{Doing, Error, Result, in_words};
use crate::own_fd::OwnFd;
use crate::this_process::ThisProcess;

/// `f_type` of procfs (statfs(2)).
const PROC_SUPER_MAGIC: u64 = 0x9fa0;
/// Lists of the whole machine. Container engines mount `/dev/null` over some of them (`MaskedPaths` of the runtime
/// specification), and an empty list does not mean that nothing exists.
const TABLES: [&str; 4] = ["keys", "key-users", "locks", "sysvipc"];
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The open ones, as long as a look uses them; the last is the newest.
static ROOTS: Mutex<Vec<Weak<ProcRoot>>> = Mutex::new(Vec::new());
/// Descriptors of such roots: the observer's own.
static FDS: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

struct Kept(OwnFd);

impl Kept {
    fn new(fd: OwnedFd) -> rustix::io::Result<Self> {
        let fd = OwnFd::new(fd)?;
        FDS.lock().unwrap_or_else(PoisonError::into_inner).push(fd.number());
        Ok(Kept(fd))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut fds = FDS.lock().unwrap_or_else(PoisonError::into_inner);
        // Of one that the program has closed, the number may stand there twice.
        if let Some(at) = fds.iter().position(|fd| *fd == self.0.number()) {
            fds.swap_remove(at);
        }
    }
}

/// A directory that shows our pid namespace, uncovered if possible.
pub(crate) struct ProcRoot {
    dir: Kept,
    private: bool,
    /// The mount table that it was checked by, if nothing covers it: poll(2) reports a later change (proc(5)).
    table: Option<Kept>,
    /// The contents of that table then.
    text: Vec<u8>,
    /// Whether it was seen to have changed: poll(2) reports each change once.
    changed: AtomicBool,
    /// For single processes that are covered; none if the kernel refuses it.
    spare: OnceLock<Option<Kept>>,
    gap: Option<String>,
    owner: ThisProcess,
}

impl ProcRoot {
    /// A new one if the mounts have changed or none is open. Every path is opened through it as long as it is kept.
    ///
    /// # Errors
    /// [`Error::Io`] if no procfs is available at all.
    pub(crate) fn renew() -> Result<Arc<ProcRoot>> {
        if let Some(root) = ProcRoot::newest().filter(|root| root.is_current()) {
            return Ok(root);
        }
        let root = Arc::new(ProcRoot::open()?);
        let mut roots = ROOTS.lock().unwrap_or_else(PoisonError::into_inner);
        roots.retain(|kept| kept.strong_count() > 0);
        roots.push(Arc::downgrade(&root));
        Ok(root)
    }

    fn newest() -> Option<Arc<ProcRoot>> {
        ROOTS.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().find_map(Weak::upgrade)
    }

    fn current() -> Result<Arc<ProcRoot>> {
        ProcRoot::newest().filter(|root| root.is_usable()).map_or_else(ProcRoot::renew, Ok)
    }

    /// Whether it shows this process' pid namespace, and the program has closed none of its descriptors since the last look.
    fn is_usable(&self) -> bool {
        let spare = self.spare.get().and_then(Option::as_ref);
        let mut kept = [Some(&self.dir), self.table.as_ref(), spare].into_iter().flatten();
        self.owner == ThisProcess::now() && kept.all(|kept| kept.0.is_ours())
    }

    fn is_current(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let same = |table: &Kept| poll(&mut [PollFd::new(&table.0, PollFlags::PRI)], Some(&now)) == Ok(0);
        if !self.is_usable() || !self.table.as_ref().is_some_and(same) {
            self.changed.store(true, Ordering::Relaxed);
        }
        !self.changed.load(Ordering::Relaxed)
    }

    fn open() -> Result<ProcRoot> {
        let ordinary = openat(CWD, "/proc", DIRECTORY, Mode::empty());
        let checked = match &ordinary {
            Ok(dir) => check(dir.as_fd()),
            Err(e) => Err(Doubt::Covered(format!("cannot open /proc: {}", in_words(e)))),
        };
        let root = |dir, private, (table, text): (Option<OwnedFd>, Vec<u8>), gap| -> Result<ProcRoot> {
            Ok(ProcRoot {
                dir: Kept::new(dir).map_err(|e| Error::io("mark the descriptor of", "/proc", e))?,
                private,
                // Without it, each look opens its own.
                table: table.and_then(|table| Kept::new(table).ok()),
                text,
                changed: AtomicBool::new(false),
                spare: OnceLock::new(),
                gap,
                owner: ThisProcess::now(),
            })
        };
        match (checked, ordinary) {
            (Ok(table), Ok(dir)) => root(dir, false, table, None),
            (checked, ordinary) => match (private(), ordinary) {
                (Ok(dir), _) => root(dir, true, Default::default(), None),
                (Err(_), Ok(dir)) => {
                    let gap = checked.err().and_then(|doubt| match doubt {
                        Doubt::Covered(why) => Some(why),
                        Doubt::Less => None,
                    });
                    root(dir, false, Default::default(), gap)
                }
                (Err(_), Err(e)) => Err(Error::io("open directory", "/proc", e)),
            },
        }
    }

    /// What it does not show, and why.
    pub(crate) fn gap(&self) -> Option<&str> {
        self.gap.as_deref()
    }

    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.0.as_fd()
    }

    /// The private one, if this one is covered in part.
    pub(crate) fn spare(&self) -> Option<BorrowedFd<'_>> {
        let spare =
            self.spare.get_or_init(|| private().ok().filter(|_| !self.private).and_then(|dir| Kept::new(dir).ok()));
        spare.as_ref().map(|kept| kept.0.as_fd())
    }

    fn file(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        // Magic links always lead to other file systems.
        let leads_out = |part: &std::ffi::OsStr| ["root", "cwd", "exe", "fd", "ns"].iter().any(|link| part == *link);
        let numbered = path.as_os_str().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit);
        let is_table = path.iter().next().is_some_and(|first| TABLES.iter().any(|table| first == *table));
        if self.private || !(numbered || is_table) || path.iter().any(leads_out) {
            return openat(self.dir(), path, flags, Mode::empty());
        }
        match openat2(self.dir(), path, flags, Mode::empty(), ResolveFlags::NO_XDEV) {
            Err(Errno::XDEV) => openat(self.spare().ok_or(Errno::XDEV)?, path, flags, Mode::empty()),
            // Linux before 5.6.
            Err(Errno::NOSYS) => openat(self.dir(), path, flags, Mode::empty()),
            other => other,
        }
    }
}

/// Descriptors of this process that are open for observing, or were until the program closed them.
pub(crate) fn own_fds() -> Vec<RawFd> {
    FDS.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Opens a path; one below `/proc` through its root.
pub(crate) fn open(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC;
    match path.strip_prefix("/proc") {
        Ok(below) => ProcRoot::current().map_err(|_| Errno::NOENT)?.file(below, flags),
        Err(_) => openat(CWD, path, flags, Mode::empty()),
    }
}

/// Reads a link; one below `/proc` through its root.
pub(crate) fn read_link(path: &Path) -> rustix::io::Result<Vec<u8>> {
    let link = match path.strip_prefix("/proc") {
        Ok(below) => readlinkat(ProcRoot::current().map_err(|_| Errno::NOENT)?.dir(), below, Vec::new()),
        Err(_) => readlinkat(CWD, path, Vec::new()),
    };
    link.map(std::ffi::CString::into_bytes)
}

/// Reads a whole file of procfs or sysfs.
pub(crate) fn read_file(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let file = open(path, OFlags::RDONLY).map_err(|e| match e {
        Errno::XDEV => Error::io("see past what is mounted over", path, e),
        _ => Error::io("open", path, e),
    })?;
    read_all(file.as_fd()).doing("read", path)
}

/// Our mount table. What was read of it lately holds until poll(2) reports a mount that came or went; options and
/// propagation may have changed since.
pub(crate) fn mount_table() -> Result<Vec<u8>> {
    match ProcRoot::newest().filter(|root| root.is_current()) {
        Some(root) => Ok(root.text.clone()),
        None => read_file("/proc/self/mountinfo"),
    }
}

/// A detached procfs of our pid namespace.
fn private() -> rustix::io::Result<OwnedFd> {
    let mount = sys::detached("proc", &[])?;
    // The descriptor of the mount itself is one of `O_PATH`, which cannot be marked. This one keeps the mount, too.
    openat(&mount, ".", DIRECTORY, Mode::empty())
}

/// Why an open `/proc` may not show everything.
enum Doubt {
    /// Something else covers it or a part of it.
    Covered(String),
    /// Its mount options hide something (`hidepid`, `subset`): each read reports what the reader cannot see.
    Less,
}

/// The mount table by which it shows everything, if it can be read, and its contents; or why it may not.
fn check(proc: BorrowedFd<'_>) -> std::result::Result<(Option<OwnedFd>, Vec<u8>), Doubt> {
    let covered = |why: &str| Err(Doubt::Covered(why.to_owned()));
    if fstatfs(proc).is_ok_and(|fs| fs.f_type.cast_unsigned() != PROC_SUPER_MAGIC) {
        return covered("something covers /proc: no procfs is mounted there");
    }
    let own = readlinkat(proc, "self", Vec::new()).map(std::ffi::CString::into_bytes).unwrap_or_default();
    if own != std::process::id().to_string().as_bytes() {
        return covered("/proc belongs to another pid namespace");
    }
    let name = "thread-self/mountinfo";
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let table = match openat2(proc, name, flags, Mode::empty(), ResolveFlags::NO_XDEV) {
        Err(Errno::XDEV) => return covered("a mount covers /proc/thread-self/mountinfo"),
        // Linux before 5.6.
        Err(Errno::NOSYS) => openat(proc, name, flags, Mode::empty()),
        other => other,
    };
    let table = table.and_then(|file| Ok((read_all(file.as_fd())?, file)));
    let (text, table) = table.map_or_else(|_| Default::default(), |(text, file)| (text, Some(file)));
    let mut less = None;
    for line in text.split(|b| *b == b'\n') {
        // The fifth word is the mount point (proc_pid_mountinfo(5)).
        let mut words = line.split(|b| *b == b' ');
        let Some(point) = words.nth(4).and_then(|word| word.strip_prefix(b"/proc")) else { continue };
        match point {
            [] => {
                // The last one lies on top.
                let options = words.next_back().unwrap_or_default().split(|b| *b == b',');
                let hides = |o: &[u8]| o.starts_with(b"subset=") || o.starts_with(b"hidepid=") && o != b"hidepid=off";
                less = options.clone().any(hides).then_some(Doubt::Less);
            }
            [b'/', first, ..] if first.is_ascii_digit() => {
                return covered(&format!("a mount covers /proc{}", String::from_utf8_lossy(point)));
            }
            _ => {}
        }
    }
    less.map_or(Ok((table, text)), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_current_until_the_mounts_change() {
        let changed = std::thread::spawn(|| {
            let flags = rustix::thread::UnshareFlags::NEWNS;
            #[allow(unsafe_code)]
            // SAFETY: this thread alone gets a mount namespace and a working directory; it has no memory of its own.
            if unsafe { rustix::thread::unshare_unsafe(flags) }.is_err() {
                return None;
            }
            let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
            // A root that is not a mount point (chroot) has none.
            let _ = rustix::mount::mount_change("/", private);
            let root = ProcRoot::open().unwrap();
            let before = (root.is_current(), root.is_current());
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount("none", "/proc/1", "tmpfs", flags, None).unwrap();
            Some((before, (root.is_current(), root.is_current())))
        });
        match changed.join().unwrap() {
            None => eprintln!("not run: needs CAP_SYS_ADMIN"),
            Some(changed) => assert_eq!(changed, ((true, true), (false, false))),
        }
    }
}
