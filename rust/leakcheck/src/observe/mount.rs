//! Mounts of every reachable mount namespace, and detached mounts.
//!
//! Since Linux 6.8 `listmount(2)` and `statmount(2)` give ids that are never reused; before, mountinfo is read until two
//! reads agree, and the whole tuple is the identity.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{stderr, stdin, stdout};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::enter::{self, NsView};
use super::mount_table;
use super::pass::Sample;
use super::proc_root;
use super::read::read_all;
use super::sys::{self, MountStat};
use crate::arena::{ArenaView, proc_path};
use crate::error::{Doing, Error, Result};
use crate::kind::Kind;
use crate::parse::mountinfo;
use crate::parse::nslink::NsType;
use crate::resource::{Mount, MountId, encode_device};
use crate::snapshot::{Level, Snapshot};
use crate::text::Text;

/// A mount namespace, and ways to reach it.
pub(super) struct MountNs<'a> {
    pub(crate) ino: u64,
    /// Opens it.
    pub(crate) path: PathBuf,
    /// A process in it, for kernels without `listmount`.
    pub(crate) pid: Option<u32>,
    pub(crate) own: bool,
    /// Whose `/proc` has that process.
    pub(crate) arena: Option<&'a ArenaView>,
}

/// The mounts of an arena's first mount namespace, and the table whose poll(2) reports a change since (proc(5),
/// mountinfo).
struct Listed {
    ino: u64,
    table: File,
    mounts: Vec<Mount>,
}

impl Listed {
    fn is_current(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut [PollFd::new(&self.table, PollFlags::PRI)], Some(&now)), Ok(0))
    }
}

/// The mounts of an arena's first mount namespace, until it changes.
#[derive(Default)]
pub(super) struct MountCache(Mutex<Option<Listed>>);

/// PID 1 of an arena stays in its namespace, so the list is read again only after a change.
fn by_event(ns: &MountNs<'_>, cache: &MountCache) -> std::io::Result<Vec<Mount>> {
    let mut listed = cache.0.lock().unwrap_or_else(PoisonError::into_inner);
    let table = match listed.take().filter(|old| old.ino == ns.ino) {
        Some(old) if old.is_current() => return Ok(listed.insert(old).mounts.clone()),
        // The event is consumed before the list is read: a change meanwhile raises another one.
        Some(old) => old.table,
        None => File::from(proc_root::open(&proc_path(ns.arena, "1/mountinfo"), OFlags::RDONLY)?),
    };
    let mounts = by_statmount(ns)?;
    *listed = Some(Listed { ino: ns.ino, table, mounts: mounts.clone() });
    Ok(mounts)
}

/// Appends the mounts of one namespace.
pub(super) fn collect(ns: &MountNs<'_>, cache: Option<&MountCache>, out: &mut Snapshot) {
    let listed = match cache.filter(|_| ns.pid == Some(1) && !ns.own) {
        Some(cache) => by_event(ns, cache),
        None => by_statmount(ns),
    };
    match listed {
        Ok(mounts) => return out.mounts.extend(mounts),
        // Gone meanwhile, with everything it held.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) && !ns.own => return,
        Err(_) => {}
    }
    let pid = if ns.own { Some("self".to_owned()) } else { ns.pid.map(|p| p.to_string()) };
    let listed = match pid {
        Some(pid) => {
            let path = proc_path(ns.arena.filter(|_| !ns.own), format_args!("{pid}/mountinfo"));
            by_mountinfo(ns.ino, CWD, &path)
        }
        None => from_inside(ns),
    };
    match listed {
        Ok(mounts) => out.mounts.extend(mounts),
        Err(e) if e.is_gone() => {}
        Err(e) => out.coverage.lower(Kind::Mount, Level::Partial, e.to_string()),
    }
}

/// A namespace without processes, if the kernel cannot list it by its id: a thread enters it.
fn from_inside(ns: &MountNs<'_>) -> Result<Vec<Mount>> {
    let failed = |e: Errno| Error::io("open directory", "/proc", e);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Inside, another procfs or none may be mounted on /proc.
    let proc = proc_root::open(Path::new("/proc"), flags).map_err(failed)?;
    let view = NsView { ns_type: NsType::Mnt, ino: ns.ino, path: ns.path.clone(), own: false };
    let read = |_: &NsView| by_mountinfo(ns.ino, proc.as_fd(), Path::new("thread-self/mountinfo"));
    enter::inside(&[&view], read).pop().unwrap_or_else(|| Err(failed(Errno::STALE)))?
}

fn by_statmount(ns: &MountNs<'_>) -> std::io::Result<Vec<Mount>> {
    let id = if ns.own {
        0
    } else {
        let file = proc_root::open(&ns.path, OFlags::RDONLY)?;
        sys::mount_ns_id(file.as_fd()).ok_or_else(std::io::Error::last_os_error)?
    };
    let mut mounts = Vec::new();
    for mount in sys::listmount(id)? {
        let stat = match MountStat::of(mount, id) {
            Ok(stat) => stat,
            // Unmounted between the two calls.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => continue,
            Err(e) => return Err(e),
        };
        let (major, minor) = stat.device();
        mounts.push(Mount {
            ns: ns.ino,
            id: MountId::Unique(mount),
            target: Text::from(stat.point()),
            root: Text::from(stat.root()),
            fs_type: Text::from(stat.fs_type()),
            source: Text::from(stat.source()),
            dev: encode_device(major, minor),
            propagation: Text::from(stat.propagation().as_bytes()),
            holder: "namespace".to_owned(),
        });
    }
    Ok(mounts)
}

/// `/proc/PID/mountinfo` (proc(5)) is not atomic if it takes several reads: it is read until two reads agree.
fn by_mountinfo(ns: u64, at: BorrowedFd<'_>, path: &Path) -> Result<Vec<Mount>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let opened = if path.is_absolute() {
        proc_root::open(path, flags)
    } else {
        rustix::fs::openat(at, path, flags, Mode::empty())
    };
    let file = opened.doing("open", path)?;
    let mut text = read_all(file.as_fd()).doing("read", path)?;
    for _ in 0..16 {
        rustix::fs::seek(&file, SeekFrom::Start(0)).doing("seek", path)?;
        let again = read_all(file.as_fd()).doing("read", path)?;
        if again == text {
            break;
        }
        text = again;
    }
    let mounts = mountinfo::parse(&text).map_err(|e| Error::usage(format!("{}: {e}", path.display())))?;
    Ok(mounts
        .into_iter()
        .map(|m| {
            let tuple = format!(
                "{} {} {}:{} {} {} {} {}",
                m.id,
                m.parent_id,
                m.major,
                m.minor,
                Text::from(&*m.root),
                Text::from(&*m.mount_point),
                Text::from(&*m.fs_type),
                Text::from(&*m.source)
            );
            Mount {
                ns,
                id: MountId::Tuple(Text::from(tuple.as_bytes())),
                target: Text::from(&*m.mount_point),
                root: Text::from(&*m.root),
                fs_type: Text::from(&*m.fs_type),
                source: Text::from(&*m.source),
                dev: encode_device(m.major, m.minor),
                propagation: Text::from(propagation(&m.propagation).as_bytes()),
                holder: "namespace".to_owned(),
            }
        })
        .collect())
}

/// Mounts that a descriptor or a directory of a process pins although no listed namespace contains them: never attached
/// (`fsmount(2)`, `open_tree(2)`) or lazily unmounted (`umount2(MNT_DETACH)`). A process in an `arena` may have
/// received a file of the host from its starter: a mount that we have ourselves is attached. So is the one of our standard
/// streams, which may be outside of our root, as the console is after switch_root(8).
pub(crate) fn collect_detached(samples: &[Sample], arena: bool, out: &mut Snapshot) {
    let devices: HashSet<u64> = out.mounts.iter().map(|m| m.dev).collect();
    let unique = out.mounts.iter().any(|m| matches!(m.id, MountId::Unique(_)));
    let listed: HashSet<u64> = out.mounts.iter().filter_map(|m| number(&m.id)).collect();
    let mut found: HashMap<u64, Mount> = HashMap::new();
    let mut note = |mount: Option<u64>, dev: u64, path: &[u8], holder: String| {
        let (key, id) = match mount {
            Some(id) if unique && !listed.contains(&id) => (id, MountId::Unique(id)),
            Some(id) if !unique && !listed.contains(&id) => (id, detached(&id.to_string(), dev)),
            // Without ids (before Linux 5.8), a device that is not mounted here is the only evidence.
            None if !unique && !devices.contains(&dev) => (dev, detached("", dev)),
            Some(_) | None => return,
        };
        let empty = || Text::from(&b""[..]);
        found.entry(key).or_insert_with(|| Mount {
            ns: 0,
            id,
            target: empty(),
            root: Text::from(path),
            fs_type: empty(),
            source: empty(),
            dev,
            propagation: empty(),
            holder,
        });
    };
    for sample in samples {
        let pid = sample.process.pid;
        for pin in &sample.pins {
            note(pin.mount, pin.dev, &pin.path, format!("{} of {pid}", pin.what));
        }
        for fd in sample.fds.iter().filter(|fd| fd.ino != 0 && !is_kernel_internal(fd.target.as_ref())) {
            note(fd.mount, fd.dev, fd.target.as_ref(), format!("fd {} of {pid}", fd.fd));
        }
    }
    if !found.is_empty() {
        // The caller's standard streams may be from another mount namespace, and the run inherits them.
        let mut ours = if arena { own_ids(unique) } else { HashSet::new() };
        ours.extend([stdin().as_fd(), stdout().as_fd(), stderr().as_fd()].map(mount_table::number));
        found.retain(|id, _| !ours.contains(id));
    }
    out.mounts.extend(found.into_values());
}

/// The ids of the mounts in our own namespace, as statx(2) gives them.
fn own_ids(unique: bool) -> HashSet<u64> {
    if unique {
        return sys::listmount(0).into_iter().flatten().collect();
    }
    let listed = by_mountinfo(0, CWD, Path::new("/proc/self/mountinfo"));
    listed.into_iter().flatten().filter_map(|m| number(&m.id)).collect()
}

/// The number of a mount in statx(2). A tuple starts with it.
fn number(id: &MountId) -> Option<u64> {
    match id {
        MountId::Unique(id) => Some(*id),
        MountId::Tuple(tuple) => {
            let digits = tuple.as_ref().split(|b| *b == b' ').next()?;
            std::str::from_utf8(digits).ok()?.parse().ok()
        }
    }
}

fn detached(id: &str, dev: u64) -> MountId {
    MountId::Tuple(Text::from(format!("detached {id} {}", crate::resource::device(dev)).as_bytes()))
}

/// Files on the kernel's internal mounts, whose links look like paths.
pub(super) fn is_kernel_internal(target: &[u8]) -> bool {
    const INTERNAL: [&[u8]; 8] = [
        b"/memfd:",
        b"/SYSV",
        b"/dev/zero (deleted)",
        b"/anon_hugepage",
        b"/dmabuf:",
        b"/secretmem",
        b"/[aio]",
        b"/i915",
    ];
    INTERNAL.iter().any(|prefix| target.starts_with(prefix))
}

fn propagation(p: &mountinfo::Propagation) -> String {
    let numbered = [("shared", p.shared), ("master", p.master), ("propagate_from", p.propagate_from)];
    let mut words: Vec<String> =
        numbered.into_iter().filter_map(|(word, group)| Some(format!("{word}:{}", group?))).collect();
    if p.unbindable {
        words.push("unbindable".to_owned());
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn tuples(mounts: Result<Vec<Mount>>) -> BTreeSet<MountId> {
        mounts.unwrap().into_iter().map(|m| m.id).collect()
    }

    #[test]
    fn a_namespace_reads_the_same_from_inside_and_from_outside() {
        let path = PathBuf::from("/proc/self/ns/mnt");
        let ino = std::fs::metadata(&path).unwrap().ino();
        let ns = MountNs { ino, path, pid: None, own: false, arena: None };
        if matches!(&from_inside(&ns), Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EPERM)) {
            return;
        }
        // In a chroot the outside reading ends at its root, and names paths from there. Others may mount between the two.
        let ids = |mounts: &BTreeSet<MountId>| mounts.iter().map(number).collect::<BTreeSet<_>>();
        let agree = |_| {
            let inside = tuples(from_inside(&ns));
            let outside = tuples(by_mountinfo(ino, CWD, Path::new("/proc/self/mountinfo")));
            !outside.is_empty() && (inside == outside || ids(&inside).is_superset(&ids(&outside)) && is_chrooted())
        };
        assert!((0..20).any(agree));
    }

    fn is_chrooted() -> bool {
        let parents = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let of_root = parents.lines().map(|l| l.split(' ').collect::<Vec<_>>()).find(|f| f[4] == "/");
        // The first namespace's root has the hidden mount number 1 for its parent; elsewhere the weaker comparison has to do.
        of_root.is_none_or(|f| f[1].parse::<u32>().unwrap() > 1)
    }

    #[test]
    fn the_number_of_a_mount_is_its_unique_id_or_the_first_of_its_tuple() {
        assert_eq!(number(&MountId::Unique(1 << 32)), Some(1 << 32));
        assert_eq!(number(&MountId::Tuple(Text::from(&b"31 1 0:27 / /tmp tmpfs tmpfs"[..]))), Some(31));
        assert_eq!(number(&detached("31", 27)), None);
    }
}
