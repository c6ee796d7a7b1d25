//! The raw system calls that rustix lacks.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_uint};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use crate::own_fd::OwnFd;

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

/// A perf event of one CPU with the ring that the kernel writes its records to, perf_event_open(2).
pub(super) struct Ring {
    event: OwnFd,
    /// The control page, and after it the records.
    base: *mut u8,
    page: usize,
    /// Bytes of the records, a power of two.
    size: usize,
}

// SAFETY: the mapping belongs to this alone and is as good from one thread as from another.
unsafe impl Send for Ring {}

/// Offsets in `struct perf_event_mmap_page`.
const DATA_HEAD: usize = 1024;
const DATA_TAIL: usize = 1032;

impl Ring {
    /// Opens an event of every process on this CPU; `attr` is a `struct perf_event_attr`.
    pub(super) fn open(attr: &[u32; 32], cpu: u32, pages: usize) -> Result<Ring, Errno> {
        const PERF_FLAG_FD_CLOEXEC: usize = 8;
        let cpu = i32::try_from(cpu).map_err(|_| Errno::INVAL)?;
        // SAFETY: the kernel reads the 128 bytes that the attribute says it has, and touches no other memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), -1, cpu, -1, PERF_FLAG_FD_CLOEXEC) };
        let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(last)?;
        // SAFETY: the kernel has just given us this FD, nobody else owns it.
        let event = OwnFd::new(unsafe { OwnedFd::from_raw_fd(fd) })?;
        let page = rustix::param::page_size();
        let size = pages * page;
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), page + size, access, flags, event.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(last());
        }
        Ok(Ring { event, base: base.cast(), page, size })
    }

    /// Readable when there is something to read.
    pub(super) fn event(&self) -> &OwnFd {
        &self.event
    }

    /// Bytes that the ring holds.
    pub(super) fn size(&self) -> u64 {
        self.size as u64
    }

    /// Reads the complete records that were written since the last call, and returns their space to the kernel.
    pub(super) fn take(&mut self) -> Vec<u8> {
        // SAFETY: both are aligned words of 64 bits within the control page, which is mapped for as long as `self` lives. The
        // kernel writes the head, we alone the tail; it pairs its barriers with an acquire of the one and a release of the other.
        let (head, tail) =
            unsafe { (&*self.base.add(DATA_HEAD).cast::<AtomicU64>(), &*self.base.add(DATA_TAIL).cast::<AtomicU64>()) };
        let (end, start) = (head.load(Ordering::Acquire), tail.load(Ordering::Relaxed));
        let len = usize::try_from(end.wrapping_sub(start)).unwrap_or(0).min(self.size);
        let at = start as usize & (self.size - 1);
        let first = len.min(self.size - at);
        let mut bytes = vec![0; len];
        // SAFETY: both parts lie within the records, and `bytes` has their length. The kernel does not write to what lies between
        // tail and head.
        unsafe {
            let records = self.base.add(self.page);
            std::ptr::copy_nonoverlapping(records.add(at), bytes.as_mut_ptr(), first);
            std::ptr::copy_nonoverlapping(records, bytes.as_mut_ptr().add(first), len - first);
        }
        tail.store(end, Ordering::Release);
        bytes
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping that `open` made, which nothing refers to any more.
        unsafe { libc::munmap(self.base.cast(), self.page + self.size) };
    }
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

/// Blocks all signals of the calling thread while this lives. A thread started meanwhile inherits the mask.
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

/// Gives the calling thread its own FD table with nothing but copies of `keep`, close_range(2), Linux 5.9.
///
/// Only for a thread that is about to exit and owns no FD: afterwards, every number except those of `keep` is invalid
/// in it.
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
