//! The system calls of the helper programs that rustix does not wrap safely, in one place for audits.
//!
//! Everything here is for single-threaded programs: [`fork`] copies only the calling thread, and the functions that close
//! descriptors close them behind the back of their owners. They may run only right after a fork, in a process that drops
//! none of these owners.
#![allow(unsafe_code, reason = "raw system calls have no safe wrapper; each block says why it is sound")]

pub mod bpf;
mod descriptors;
pub mod devices;
mod error;
pub mod ipc;
mod kernel;
pub mod keys;
mod locks;
mod mapping;
pub mod notify;
mod process;
mod shared;
mod signals;
pub mod trace;

pub use descriptors::{
    close_all_but, close_on_exec_above_streams, io_uring, set_streams, unshare_descriptors, wait_until,
};
pub use error::{Failure, in_words};
pub use kernel::{loopback_up, set_mount_attributes};
pub use locks::{set_lease, set_ofd_lock};
pub use mapping::Mapping;
pub use process::{
    Child, Ended, become_user, exec, exec_by_path, exit, exit_thread, fork, fork_sibling, fork_unwatched, open_pidfd,
    overwrite_arguments, reap, run_as_usual, run_last, unshare, wait,
};
pub use shared::Shared;
pub use signals::{
    block_signals, default_signal, default_signals, drain, next_signal, open_signal_fd, signal_fd, unblock_signals,
};

fn check(result: libc::c_long) -> std::io::Result<()> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
