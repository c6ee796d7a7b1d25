//! Descriptors in flight: sent over a unix socket with `SCM_RIGHTS` and not received yet, so that they are in no table
//! (unix(7)). `scm_fds` of fdinfo counts them (Linux 5.10). Only a socket with a non-empty queue can have any, so on a
//! whole host only the sockets that `sock_diag` reports as non-empty are read.

use std::collections::HashSet;

use super::context::Context;
use super::enter::{NsView, inside, note_refused};
use super::process_files::Fdinfo;
use super::sockdiag::SockDiag;
use crate::error::in_words;
use crate::kind::Kind;
use crate::parse::fdinfo;
use crate::parse::fdlink::{self, FdLink};
use crate::parse::nslink::NsType;
use crate::snapshot::{Level, Snapshot};

/// If there are more unix sockets than this, the queues are dumped first instead of reading the sockets one by one.
const ASK_ALL: usize = 64;

/// Fills in [`crate::resource::Fd::in_flight`].
pub(super) fn fill(views: &[NsView], context: Context<'_>, out: &mut Snapshot) {
    let sockets = out.fds.iter().filter(|fd| socket(fd.target.as_ref()).is_some()).count();
    let mut queued: Option<HashSet<u64>> = None;
    if sockets > ASK_ALL && !views.is_empty() {
        let net: Vec<&NsView> = views.iter().filter(|v| v.ns_type == NsType::Net).collect();
        let dumps = inside(&net, |_| SockDiag::open().and_then(|mut diag| diag.unix_queued()));
        note_refused(Kind::Fd, dumps.iter().filter_map(|dump| dump.as_ref().err()), out);
        // If one of them gives no answer, each socket is read.
        queued = dumps
            .into_iter()
            .flatten()
            .collect::<Result<Vec<_>, _>>()
            .ok()
            .map(|all| all.into_iter().flatten().collect());
    }
    let mut infos = match Fdinfo::open(context.arena) {
        Ok(infos) => infos,
        Err(e) => {
            return out.coverage.lower(
                Kind::Fd,
                Level::Partial,
                format!("cannot find descriptors in flight: {}", in_words(e)),
            );
        }
    };
    for fd in &mut out.fds {
        let Some(ino) = socket(fd.target.as_ref()) else { continue };
        if queued.as_ref().is_some_and(|q| !q.contains(&ino)) {
            continue;
        }
        fd.in_flight = fdinfo::parse(infos.of(fd)).scm_fds.unwrap_or(0);
    }
}

fn socket(target: &[u8]) -> Option<u64> {
    match target.starts_with(b"socket:").then(|| fdlink::parse(target)) {
        Some(FdLink::Socket(ino)) => Some(ino),
        Some(_) | None => None,
    }
}
