//! Looking at a namespace from inside it.
//!
//! setns(2) of a network or IPC namespace affects only the calling thread, so a new thread enters, looks and exits: the
//! caller does not change, and no code has to switch back.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{self, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{proc_root, sys};
use crate::error::{Doing, Error, Result, in_words};
use crate::kind::Kind;
use crate::parse::nslink::NsType;
use crate::snapshot::{Level, Snapshot};

/// `f_type` of nsfs (statfs(2)).
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// A reachable namespace and a path that opens it.
#[derive(Clone, Debug)]
pub(crate) struct NsView {
    /// The type.
    pub(crate) ns_type: NsType,
    /// Inode of the nsfs file.
    pub(crate) ino: u64,
    /// `/proc/12/ns/net`, `/proc/12/fd/5` or a bind mount.
    pub(crate) path: PathBuf,
    /// Whether it is the observer's own, which needs no setns(2) and no privilege.
    pub(crate) own: bool,
}

/// Runs `f` in each namespace, in any order, and returns the results in the order of `views`.
///
/// `f` runs in the calling thread for the observer's own namespaces, and in one new thread for all others, which exits
/// before this returns. After it entered a mount namespace, absolute paths lead elsewhere in that thread. A namespace
/// that cannot be opened or entered gives an [`Error::Io`]; [`is_gone`] recognises those that ended.
pub(crate) fn inside<T: Send>(views: &[&NsView], mut f: impl FnMut(&NsView) -> T + Send) -> Vec<Result<T>> {
    let mut results: Vec<Option<Result<T>>> = views.iter().map(|view| view.own.then(|| Ok(f(view)))).collect();
    let others: Vec<&NsView> = views.iter().filter(|view| !view.own).copied().collect();
    if !others.is_empty() {
        let visit = || others.iter().map(|view| enter(view).map(|()| f(view))).collect::<Vec<_>>();
        let visited = thread::scope(|scope| {
            let visitor = thread::Builder::new().name("leakcheck-setns".into()).spawn_scoped(scope, visit);
            visitor.map(|v| v.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let visited = visited.unwrap_or_else(|e: io::Error| {
            let errno = Errno::from_io_error(&e).unwrap_or(Errno::AGAIN);
            let refused = |view: &&NsView| Err(Error::io("start a thread to enter namespace", &view.path, errno));
            others.iter().map(refused).collect()
        });
        results.iter_mut().filter(|result| result.is_none()).zip(visited).for_each(|(slot, seen)| *slot = Some(seen));
    }
    results.into_iter().flatten().collect()
}

/// Whether an error of [`inside`] means that the namespace, or the process that led to it, ended meanwhile. That is not
/// a gap: if something else keeps the namespace alive, it leads to the namespace at the next look.
pub(crate) fn is_gone(error: &Error) -> bool {
    let Error::Io { source, .. } = error else { return false };
    let gone = [Errno::NOENT, Errno::SRCH, Errno::STALE];
    gone.iter().any(|errno| source.raw_os_error() == Some(errno.raw_os_error()))
}

/// Lowers the coverage of `kind` for the namespaces that could not be entered: one reason per kind of error.
pub(crate) fn note_refused<'a>(kind: Kind, errors: impl Iterator<Item = &'a Error>, out: &mut Snapshot) {
    let mut refusals: Vec<(String, usize)> = Vec::new();
    for error in errors.filter(|e| !is_gone(e)) {
        let Error::Io { op, source, .. } = error else { continue };
        let why = format!("cannot {op}: {}", in_words(source));
        match refusals.iter_mut().find(|(known, _)| *known == why) {
            Some((_, times)) => *times += 1,
            None => refusals.push((why, 1)),
        }
    }
    for (why, times) in refusals {
        let needs = if why.contains("not permitted") || why.contains("denied") { "; needs CAP_SYS_ADMIN" } else { "" };
        let namespaces = if times == 1 { "namespace" } else { "namespaces" };
        out.coverage.lower(kind, Level::Partial, format!("not seen in {times} {namespaces}: {why}{needs}"));
    }
}

fn enter(view: &NsView) -> Result<()> {
    let namespace = open(view)?;
    if view.ns_type == NsType::Mnt {
        sys::unshare_root_and_cwd().doing("unshare root and working directory for", &view.path)?;
    }
    move_into_link_name_space(namespace.as_fd(), Some(link_type(view.ns_type))).doing("enter namespace", &view.path)
}

/// Opens the namespace that `view` means and no other: its path may lead elsewhere by now, since pids and descriptors
/// are reused. `O_PATH` first, because opening whatever else is there may block (FIFO) or do something (device).
pub(super) fn open(view: &NsView) -> Result<OwnedFd> {
    let failed = |e: Errno| Error::io("open namespace", &view.path, e);
    let found = proc_root::open(&view.path, OFlags::PATH).map_err(failed)?;
    let stat = fs::fstat(&found).map_err(failed)?;
    let file_system = fs::fstatfs(&found).map_err(failed)?;
    if stat.st_ino != view.ino || file_system.f_type as u64 != NSFS_MAGIC {
        return Err(failed(Errno::STALE));
    }
    let through = format!("/proc/self/fd/{}", found.as_raw_fd());
    proc_root::open(Path::new(&through), OFlags::RDONLY).map_err(failed)
}

pub(super) fn link_type(ns_type: NsType) -> LinkNameSpaceType {
    match ns_type {
        NsType::Mnt => LinkNameSpaceType::Mount,
        NsType::Pid => LinkNameSpaceType::ProcessID,
        NsType::Net => LinkNameSpaceType::Network,
        NsType::Ipc => LinkNameSpaceType::InterProcessCommunication,
        NsType::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        NsType::User => LinkNameSpaceType::User,
        NsType::Cgroup => LinkNameSpaceType::ControlGroup,
        NsType::Time => LinkNameSpaceType::Time,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn own_net() -> NsView {
        let path = PathBuf::from("/proc/thread-self/ns/net");
        let ino = std::fs::metadata(&path).unwrap().ino();
        NsView { ns_type: NsType::Net, ino, path, own: true }
    }

    #[test]
    fn the_own_namespace_is_looked_at_from_the_calling_thread() {
        let view = own_net();
        let me = thread::current().id();
        let seen = inside(&[&view, &view], |_| thread::current().id());
        assert!(seen.into_iter().all(|id| id.unwrap() == me));
    }

    #[test]
    fn results_come_in_the_order_of_the_views() {
        let own = own_net();
        let missing = NsView { path: "/proc/0/ns/net".into(), own: false, ..own.clone() };
        let seen = inside(&[&missing, &own, &missing], |view| view.ino);
        assert_eq!(*seen[1].as_ref().unwrap(), own.ino);
        for gone in [&seen[0], &seen[2]] {
            let error = gone.as_ref().unwrap_err();
            assert!(is_gone(error), "{error}");
        }
    }

    #[test]
    fn a_path_that_leads_to_another_namespace_by_now_is_gone() {
        let own = own_net();
        let reused = NsView { ino: own.ino + 1, own: false, ..own };
        let error = inside(&[&reused], |_| ()).remove(0).unwrap_err();
        assert!(is_gone(&error), "{error}");
    }

    #[test]
    fn a_fifo_in_the_place_of_a_namespace_blocks_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        rustix::fs::mknodat(fs::CWD, &path, fs::FileType::Fifo, fs::Mode::RUSR | fs::Mode::WUSR, 0).unwrap();
        let ino = std::fs::metadata(&path).unwrap().ino();
        let fifo = NsView { ns_type: NsType::Net, ino, path, own: false };
        assert!(is_gone(&inside(&[&fifo], |_| ()).remove(0).unwrap_err()));
    }

    #[test]
    fn many_refusals_of_one_sort_are_one_reason() {
        let refused = || Error::io("enter namespace", "/proc/1/ns/net", Errno::PERM);
        let gone = Error::io("open namespace", "/proc/2/ns/net", Errno::NOENT);
        let mut out = Snapshot::empty(crate::scope::Scope::Host, crate::kind::KindSet::all());
        note_refused(Kind::Net, [refused(), gone, refused()].iter(), &mut out);
        let coverage = &out.coverage.0[&Kind::Net];
        assert_eq!(coverage.level, Level::Partial);
        assert_eq!(
            coverage.reason,
            "not seen in 2 namespaces: cannot enter namespace: operation not permitted; needs CAP_SYS_ADMIN"
        );
        let mut out = Snapshot::empty(crate::scope::Scope::Host, crate::kind::KindSet::all());
        note_refused(Kind::Net, [Error::io("open namespace", "/proc/2/ns/net", Errno::SRCH)].iter(), &mut out);
        assert_eq!(out.coverage.0[&Kind::Net].level, Level::Full, "what ended is no gap");
    }
}
