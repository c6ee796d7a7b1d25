//! Which process this is. An id does not tell: a child that is forked into a new pid namespace is number 1 there, as its
//! parent may be in its own.
#![allow(unsafe_code)]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// A process, as it is told from its parent and from its forked children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThisProcess(u64);

/// Larger than that of any process that this one was forked from.
static GENERATION: AtomicU64 = AtomicU64::new(0);
static WORD: OnceLock<Option<&'static AtomicU64>> = OnceLock::new();
/// What stands for a process by its id alone.
const BY_ID: u64 = 1 << 63;

impl ThisProcess {
    /// The calling one.
    pub(crate) fn now() -> Self {
        let Some(word) = WORD.get_or_init(wiped_on_fork) else {
            return ThisProcess(BY_ID | u64::from(std::process::id()));
        };
        let known = word.load(Ordering::Acquire);
        if known != 0 {
            return ThisProcess(known);
        }
        let new = GENERATION.fetch_add(1, Ordering::Relaxed) + 1;
        ThisProcess(
            word.compare_exchange(0, new, Ordering::AcqRel, Ordering::Acquire).map_or_else(|other| other, |_| new),
        )
    }
}

/// A word that is zero in a forked child (madvise(2), `MADV_WIPEONFORK`, Linux 4.14). None if the kernel refuses it.
fn wiped_on_fork() -> Option<&'static AtomicU64> {
    let (length, access) = (rustix::param::page_size(), libc::PROT_READ | libc::PROT_WRITE);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at an address of the kernel's choice, which nothing else refers to and which stays for ever. It is
    // aligned to a page and filled with zeros, which is a valid `AtomicU64`.
    unsafe {
        let page = libc::mmap(std::ptr::null_mut(), length, access, flags, -1, 0);
        if page == libc::MAP_FAILED {
            return None;
        }
        if libc::madvise(page, length, libc::MADV_WIPEONFORK) != 0 {
            libc::munmap(page, length);
            return None;
        }
        Some(&*page.cast::<AtomicU64>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forked_child_is_another_process_and_a_thread_is_not() {
        let own = ThisProcess::now();
        assert_eq!(std::thread::spawn(ThisProcess::now).join().unwrap(), own);
        // SAFETY: the child only reads and writes its memory before it exits.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let status = i32::from(ThisProcess::now() == own || ThisProcess::now() != ThisProcess::now());
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(status) };
        }
        let mut status = -1;
        // SAFETY: waits for the child of above.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
        assert_eq!(ThisProcess::now(), own);
    }
}
