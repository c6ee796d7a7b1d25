//! The warden: creates arenas for one owner, and removes them on request or when the owner is gone.
//!
//! Started with a SOCK_SEQPACKET socket as standard input and the owner's process id as its argument, from a sealed copy
//! in memory, so that no process that is visible in an arena leads to a file of the host, and in a session of its own. It
//! blocks all signals except SIGTERM, on which it takes everything down, and stays outside the arenas' cgroups. If it is
//! killed, its processes die with it, and the next warden removes the empty cgroup directories.

#![forbid(unsafe_code)]

mod arena;
mod cgroups;
mod ending;
mod error;
mod init;
mod janitor;
mod message;
mod mounts;
mod process;
mod root;
mod spawner;
mod start;
mod trace;

use std::io;

use leakcheck_sys as sys;
use rustix::process::{Pid, PidfdFlags, getpid, getppid, pidfd_open, set_child_subreaper};

use janitor::Janitor;
use message::{Answer, send};

fn main() {
    // Such as that of the copy in memory that this program runs from.
    let _ = sys::close_all_but(&[]);
    let _ = rustix::thread::set_name(c"warden");
    if let Err(e) = run() {
        eprintln!("warden: {}", sys::in_words(&e));
        std::process::exit(1);
    }
}

fn run() -> io::Result<()> {
    let owner_pid = std::env::args().nth(1).and_then(|a| a.parse().ok()).filter(|pid| *pid > 0).and_then(Pid::from_raw);
    let owner = owner_pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let Some(owner) = owner.filter(|_| owner_pid == getppid()) else {
        // The owner may be gone already. What other wardens left is removed anyway.
        cgroups::sweep(&cgroups::hierarchies()?);
        return Err(io::Error::other(
            "only leakcheck starts the warden, with its own process id as argument and a socket as standard input",
        ));
    };
    let socket = process::take_stdin()?;
    sys::block_signals()?;
    let (children, term) = (sys::signal_fd(&[libc::SIGCHLD])?, sys::signal_fd(&[libc::SIGTERM])?);
    set_child_subreaper(Some(getpid()))?;
    // Does not keep the owner's directory busy.
    rustix::process::chdir("/")?;
    let hierarchies = match cgroups::hierarchies() {
        Ok(hierarchies) => hierarchies,
        Err(e) => {
            return send(&socket, &Answer::Error(format!("list the cgroup hierarchies: {}", sys::in_words(&e))), &[]);
        }
    };
    cgroups::sweep(&hierarchies);
    Janitor::new(socket, owner, children, term, hierarchies).serve()
}
