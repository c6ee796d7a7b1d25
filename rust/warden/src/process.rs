//! What the warden's processes do to themselves.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// Whether this is root and not in a user namespace that we created.
pub(crate) fn is_root() -> bool {
    ROOT.load(Ordering::Relaxed)
}

static ROOT: AtomicBool = AtomicBool::new(true);

/// Makes an unprivileged user root of a new user namespace (user_namespaces(7)); does nothing for root.
pub(crate) fn become_root_of_namespace() -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    if uid.is_root() {
        return Ok(());
    }
    ROOT.store(false, Ordering::Relaxed);
    leakcheck_sys::unshare(libc::CLONE_NEWUSER)?;
    std::fs::write("/proc/self/uid_map", format!("0 {} 1", uid.as_raw()))?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/gid_map", format!("0 {} 1", gid.as_raw()))
}

/// SIGKILL at the parent's death (prctl(2)).
pub(crate) fn die_with_parent(parent: i32) {
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    // In a new pid namespace, the parent has no process id.
    if getppid().is_some_and(|now| now.as_raw_nonzero().get() != parent) {
        leakcheck_sys::exit(1);
    }
}

/// Takes the descriptor 0 that this program was started with, and replaces it by standard output, which is `/dev/null`.
pub(crate) fn take_stdin() -> io::Result<OwnedFd> {
    let taken = rustix::io::fcntl_dupfd_cloexec(io::stdin().as_fd(), 3)?;
    rustix::stdio::dup2_stdin(io::stdout().as_fd())?;
    Ok(taken)
}
