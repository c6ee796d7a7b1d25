//! The contents of IPC and network namespaces, read by one thread that enters them one after the other. PID 1 of an
//! arena stays in its namespaces for the arena's whole life: their handles are opened once and kept, and no thread
//! enters them again.

use std::ffi::CStr;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::context::Context;
use super::enter::{self, NsView, inside};
use super::remote::{Inside, Remote};
use super::{ipc, net, proc_root};
use crate::arena::ArenaView;
use crate::error::{Doing, Error, Result};
use crate::parse::nslink::NsType;

/// Handles of an arena: to its IPC and network namespaces by inode, which is not reused while a handle is open.
#[derive(Default)]
pub(super) struct NsCache {
    ipc: Option<(u64, ipc::NsHandle)>,
    net: Option<(u64, net::NsHandle)>,
}

enum Contents {
    Ipc(ipc::Contents, Option<ipc::NsHandle>),
    Net(net::Contents, Option<net::NsHandle>),
}

/// The contents of each namespace of one type.
type Results<T> = Vec<Result<T>>;

/// Reads these namespaces, of the arena if there is one.
pub(super) fn observe(
    views: &[&NsView],
    context: Context<'_>,
    mut cache: Option<&mut NsCache>,
) -> (Results<ipc::Contents>, Results<net::Contents>) {
    let (mut of_ipc, mut of_net) = (Vec::new(), Vec::new());
    let mut others = Vec::new();
    for view in views {
        match cache.as_deref_mut().and_then(|cache| cache.observe(view)) {
            Some(Contents::Ipc(seen, _)) => of_ipc.push(Ok(seen)),
            Some(Contents::Net(seen, _)) => of_net.push(Ok(seen)),
            None => others.push(*view),
        }
    }
    let first = context.arena.map(|_| ["ipc", "net"].map(|t| context.proc(format_args!("1/ns/{t}"))));
    let keep = |view: &NsView| first.as_ref().is_some_and(|paths| paths.contains(&view.path));
    let look = |view: &NsView, inside: Inside<'_>| match view.ns_type {
        NsType::Ipc => {
            let handle = ipc::NsHandle::open(view, inside);
            Contents::Ipc(handle.observe(view), keep(view).then_some(handle))
        }
        _ => {
            let mut handle = net::NsHandle::open(inside, keep(view));
            Contents::Net(handle.observe(view), keep(view).then_some(handle))
        }
    };
    let mut results = inside(&others, |view| look(view, Inside::Here));
    if let Some(arena) = context.arena {
        look_remotely(arena, &others, &mut results, look);
    }
    for (view, seen) in others.iter().zip(results) {
        match seen {
            Ok(Contents::Ipc(seen, handle)) => {
                if let (Some(cache), Some(handle)) = (cache.as_deref_mut(), handle) {
                    cache.ipc = Some((view.ino, handle));
                }
                of_ipc.push(Ok(seen));
            }
            Ok(Contents::Net(seen, handle)) => {
                if let (Some(cache), Some(handle)) = (cache.as_deref_mut(), handle) {
                    cache.net = Some((view.ino, handle));
                }
                of_net.push(Ok(seen));
            }
            Err(e) if view.ns_type == NsType::Ipc => of_ipc.push(Err(e)),
            Err(e) => of_net.push(Err(e)),
        }
    }
    (of_ipc, of_net)
}

/// Looks again at the namespaces that this process may not enter, from the user namespace of an ordinary user's arena.
fn look_remotely(
    arena: &ArenaView,
    views: &[&NsView],
    results: &mut Results<Contents>,
    look: impl Fn(&NsView, Inside<'_>) -> Contents,
) {
    let is_refused = |seen: &Result<Contents>| matches!(seen, Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EPERM));
    if !results.iter().any(is_refused) {
        return;
    }
    let open = |name: &CStr| rustix::fs::openat(&arena.proc, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let start = || {
        let proc = proc_root::open(Path::new("/proc"), OFlags::PATH | OFlags::DIRECTORY)?;
        Remote::start(&open(c"1/ns/user")?, &open(c"1/ns/mnt")?, proc)
    };
    // The first refusal stands.
    let Ok(remote) = start() else { return };
    for (view, seen) in views.iter().zip(results).filter(|(_, seen)| is_refused(seen)) {
        let entered = enter::open(view).and_then(|namespace| {
            let which = enter::link_type(view.ns_type) as u32;
            remote.enter(&namespace, which.cast_signed()).doing("enter namespace", &view.path)
        });
        *seen = entered.map(|()| look(view, Inside::Remote(&remote)));
    }
}

impl NsCache {
    /// None if no handle is open, or if it did not show everything: then it is closed.
    fn observe(&mut self, view: &NsView) -> Option<Contents> {
        match view.ns_type {
            NsType::Ipc => {
                let seen = self.ipc.as_ref().filter(|(ino, _)| *ino == view.ino)?.1.observe(view);
                if seen.is_whole() {
                    return Some(Contents::Ipc(seen, None));
                }
                self.ipc = None;
            }
            _ => {
                let seen = self.net.as_mut().filter(|(ino, _)| *ino == view.ino)?.1.observe(view);
                if seen.is_whole() {
                    return Some(Contents::Net(seen, None));
                }
                self.net = None;
            }
        }
        None
    }
}
