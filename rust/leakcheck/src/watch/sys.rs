//! The raw system calls that rustix lacks.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_uint};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// fanotify_init(2) with no flags for event FDs: these groups report handles.
pub(super) fn fanotify_init(flags: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two integers, touches no memory of ours.
    let fd = unsafe { libc::fanotify_init(flags, 0) };
    if fd < 0 {
        return Err(last());
    }
    // SAFETY: the kernel has just given us this FD, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// fanotify_mark(2) on a path, which is absolute or below `at`.
pub(super) fn fanotify_mark(
    group: BorrowedFd<'_>,
    flags: u32,
    mask: u64,
    at: Option<BorrowedFd<'_>>,
    path: &CStr,
) -> Result<(), Errno> {
    let at = at.map_or(libc::AT_FDCWD, |fd| fd.as_raw_fd());
    // SAFETY: `path` is NUL-terminated and outlives the call, which only reads it; `at` is open meanwhile.
    let result = unsafe { libc::fanotify_mark(group.as_raw_fd(), flags, mask, at, path.as_ptr()) };
    if result < 0 { Err(last()) } else { Ok(()) }
}

/// `MAX_HANDLE_SZ`, open_by_handle_at(2).
const MAX_HANDLE: usize = 128;

#[repr(C)]
struct FileHandle {
    bytes: u32,
    kind: [u8; 4],
    handle: [u8; MAX_HANDLE],
}

/// Handle type and handle of the file that an FD denotes (`O_PATH` is enough), encoded as fanotify encodes it.
pub(super) fn handle_of(fd: BorrowedFd<'_>) -> Result<([u8; 4], Vec<u8>), Errno> {
    // AT_HANDLE_FID (6.5) asks for what fanotify uses, which also exists where a handle cannot be opened again.
    const AT_HANDLE_FID: i32 = 0x200;
    name_to_handle(fd, libc::AT_EMPTY_PATH | AT_HANDLE_FID).or_else(|errno| match errno {
        Errno::INVAL => name_to_handle(fd, libc::AT_EMPTY_PATH),
        other => Err(other),
    })
}

fn name_to_handle(fd: BorrowedFd<'_>, flags: i32) -> Result<([u8; 4], Vec<u8>), Errno> {
    let mut handle = FileHandle { bytes: MAX_HANDLE as u32, kind: [0; 4], handle: [0; MAX_HANDLE] };
    let mut mount_id = 0i32;
    // SAFETY: `handle` has the layout of struct file_handle with room for the `bytes` that it announces; both
    // pointers are valid for writes during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            fd.as_raw_fd(),
            c"".as_ptr(),
            &raw mut handle,
            &raw mut mount_id,
            flags,
        )
    };
    if result < 0 {
        return Err(last());
    }
    let len = (handle.bytes as usize).min(MAX_HANDLE);
    Ok((handle.kind, handle.handle[..len].to_vec()))
}

/// The calling thread's set of blocked signals while this lives: all of them. A thread started meanwhile inherits it.
pub(super) struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    /// Blocks every signal that can be blocked, pthread_sigmask(3).
    pub(super) fn all() -> BlockedSignals {
        // SAFETY: sigset_t is plain data for which zero is valid; both sets outlive the calls that fill or read them.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut old: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old);
            BlockedSignals(old)
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set was filled by pthread_sigmask and outlives the call.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

/// Gives the calling thread an FD table of its own that holds nothing but copies of `keep`, close_range(2), Linux 5.9.
///
/// Only for a thread that is about to end and owns no FD: every number but those of `keep` means nothing to it afterwards.
pub(super) fn unshare_files_keeping(keep: &mut [RawFd]) -> Result<(), Errno> {
    keep.sort_unstable();
    let last_kept = keep.last().map_or(0, |fd| *fd as c_uint + 1);
    close_range(last_kept, c_uint::MAX, libc::CLOSE_RANGE_UNSHARE)?;
    let mut first = 0;
    for fd in keep.iter().map(|fd| *fd as c_uint) {
        if fd > first {
            close_range(first, fd - 1, 0)?;
        }
        first = fd + 1;
    }
    Ok(())
}

fn close_range(first: c_uint, last_fd: c_uint, flags: c_uint) -> Result<(), Errno> {
    // SAFETY: integers only. The caller has a table of its own (or gets it by this call), so no owner loses an FD.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last_fd, flags) };
    if result < 0 { Err(last()) } else { Ok(()) }
}
