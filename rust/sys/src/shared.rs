//! Memory that a process shares with its forks.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::thread::futex;

use crate::check;

/// At most the size of a page, to which mappings are rounded up.
const PAGE: usize = 4096;

/// A number in memory that this process shares with its forks (mmap(2)), so that a child without any descriptor can
/// report something. It starts as zero.
#[derive(Debug)]
pub struct Shared(NonNull<AtomicU32>);

impl Shared {
    /// Maps a new one.
    pub fn new() -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, which nothing else refers to.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, access, flags, -1, 0) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(page.cast()).map(Shared).ok_or_else(|| io::Error::other("memory at address 0"))
    }

    /// Where the kernel may write to it.
    pub(crate) fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    fn number(&self) -> &AtomicU32 {
        // SAFETY: it is mapped until this is dropped, aligned to a page, and zero is a number.
        unsafe { self.0.as_ref() }
    }

    /// The last value set by any of the processes.
    #[must_use]
    pub fn get(&self) -> i32 {
        self.number().load(Ordering::SeqCst).cast_signed()
    }

    /// Sets it for all of them.
    pub fn set(&self, number: i32) {
        self.number().store(number.cast_unsigned(), Ordering::SeqCst);
    }

    /// Sets it for all of them, and wakes those that wait for it.
    pub fn announce(&self, number: i32) {
        self.set(number);
        let _ = futex::wake(self.number(), futex::Flags::empty(), i32::MAX.unsigned_abs());
    }

    /// Waits until one of the processes has announced `number`; returns whether it did in time.
    #[must_use]
    pub fn wait(&self, number: i32, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        loop {
            let now = self.get();
            let left = deadline.saturating_duration_since(Instant::now());
            if now == number || left.is_zero() {
                return now == number;
            }
            let left = Timespec::try_from(left).ok();
            let _ = futex::wait(self.number(), futex::Flags::empty(), now.cast_unsigned(), left.as_ref());
        }
    }

    /// Removes it from future forks of this process (madvise(2), `MADV_DONTFORK`); they must not use it.
    pub fn keep_to_ourselves(&self) -> io::Result<()> {
        // SAFETY: the mapping is ours.
        check(unsafe { libc::madvise(self.0.as_ptr().cast(), PAGE, libc::MADV_DONTFORK) }.into())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers to it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), PAGE) };
    }
}
