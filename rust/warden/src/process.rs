//! What the warden's processes do to themselves.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
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

/// Re-executes this program from a sealed copy in memory (memfd_create(2)), unless it runs from one already. Then
/// `/proc/PID/exe` and `map_files` of a process that is visible in an arena do not lead to a file of the host. If the
/// system forbids such programs (`vm.memfd_noexec`), it stays with the file.
pub(crate) fn reexec_in_memory() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    use std::os::unix::process::CommandExt;
    let reexec = || -> io::Result<()> {
        // As text, since `Path::starts_with` compares whole components.
        if std::fs::read_link("/proc/self/exe")?.to_string_lossy().starts_with("/memfd:") {
            return Ok(());
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut copy = std::fs::File::from(memfd_create(c"warden", flags)?);
        io::copy(&mut std::fs::File::open("/proc/self/exe")?, &mut copy)?;
        fcntl_add_seals(&copy, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        let mut again = std::process::Command::new(format!("/proc/self/fd/{}", copy.as_raw_fd()));
        let mut arguments = std::env::args_os();
        if let Some(name) = arguments.next() {
            again.arg0(name);
        }
        Err(again.args(arguments).exec())
    };
    let _ = reexec();
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
