//! Descriptors of this process that are leakcheck's. The program under test may run in this process too and close them, as
//! one does that closes all (`os.closerange`). Then their numbers are given to files of the program, which must be neither
//! hidden nor read nor closed.
//!
//! Two things tell: a mark on the open file description, which no file has that the program opens, and a table of which of
//! leakcheck's files had a number last. Another thread may still close a descriptor between the question and its use.
#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

/// `F_SETSIG` and `F_GETSIG` (fcntl(2)).
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
/// A signal that is never sent without `O_ASYNC`, and that no other file has.
const MARK: i32 = 61;

/// The serial of leakcheck's descriptor that had a number last, 0 if none is open. Without a lock, which a forked child
/// might find taken. Of larger numbers the mark alone tells.
static LAST: [AtomicU64; 4096] = [const { AtomicU64::new(0) }; 4096];
static SERIALS: AtomicU64 = AtomicU64::new(1);

/// Tells one of leakcheck's descriptors from whatever gets its number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token {
    number: RawFd,
    serial: u64,
}

impl Token {
    pub(crate) fn number(self) -> RawFd {
        self.number
    }

    /// Whether its number is still this descriptor's. A forked child has it too.
    pub(crate) fn is_ours(self) -> bool {
        last_of(self.number).is_none_or(|last| last.load(Ordering::Acquire) == self.serial) && is_marked(self.number)
    }
}

/// A descriptor that is closed when it is dropped, if it is still leakcheck's.
#[derive(Debug)]
pub(crate) struct OwnFd {
    fd: ManuallyDrop<OwnedFd>,
    token: Token,
}

impl OwnFd {
    /// Takes a descriptor that was just opened, not with `O_PATH`.
    ///
    /// # Errors
    /// If the kernel does not mark it.
    pub(crate) fn new(fd: OwnedFd) -> Result<Self, Errno> {
        // SAFETY: the descriptor is open, and the argument is a number.
        if unsafe { libc::fcntl(fd.as_raw_fd(), F_SETSIG, MARK) } != 0 {
            return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
        }
        let token = Token { number: fd.as_raw_fd(), serial: SERIALS.fetch_add(1, Ordering::Relaxed) };
        if let Some(last) = last_of(token.number) {
            last.store(token.serial, Ordering::Release);
        }
        Ok(OwnFd { fd: ManuallyDrop::new(fd), token })
    }

    pub(crate) fn token(&self) -> Token {
        self.token
    }

    pub(crate) fn number(&self) -> RawFd {
        self.token.number
    }

    /// Whether the program has not closed it. Ask before each use.
    pub(crate) fn is_ours(&self) -> bool {
        self.token.is_ours()
    }
}

impl Deref for OwnFd {
    type Target = OwnedFd;

    fn deref(&self) -> &OwnedFd {
        &self.fd
    }
}

impl AsFd for OwnFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for OwnFd {
    fn drop(&mut self) {
        if !self.is_ours() {
            return;
        }
        if let Some(last) = last_of(self.token.number) {
            // Before it is closed: then its number may be another one's.
            let _ = last.compare_exchange(self.token.serial, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
        // SAFETY: it is dropped here only, and not used any more.
        unsafe { ManuallyDrop::drop(&mut self.fd) };
    }
}

/// Whether one of leakcheck's descriptors has this number.
pub(crate) fn is_own(number: RawFd) -> bool {
    last_of(number).is_none_or(|last| last.load(Ordering::Acquire) != 0) && is_marked(number)
}

fn last_of(number: RawFd) -> Option<&'static AtomicU64> {
    LAST.get(usize::try_from(number).ok()?)
}

fn is_marked(number: RawFd) -> bool {
    // SAFETY: it takes no argument, and fails if nothing is open there.
    unsafe { libc::fcntl(number, F_GETSIG) == MARK }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    /// At a number that no other test's file gets meanwhile.
    fn at(number: RawFd) -> OwnFd {
        // SAFETY: nothing else has this number, and the copy is owned here alone.
        let fd = unsafe {
            use std::os::fd::FromRawFd;
            assert_eq!(libc::dup2(null().as_raw_fd(), number), number);
            OwnedFd::from_raw_fd(number)
        };
        OwnFd::new(fd).unwrap()
    }

    fn is_open(number: RawFd) -> bool {
        // SAFETY: it takes no argument, and fails if nothing is open there.
        unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
    }

    #[test]
    fn one_that_is_dropped_is_closed_and_one_that_was_replaced_is_left_to_who_has_its_number() {
        let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
        // The table does not reach to the second.
        for number in [900, 5000].into_iter().filter(|number| most > *number as u64) {
            let own = at(number);
            assert!(own.is_ours() && is_own(number));
            drop(own);
            assert!(!is_open(number) && !is_own(number));
            let own = at(number);
            // SAFETY: as the program under test does: both numbers are open.
            assert_eq!(unsafe { libc::dup2(null().as_raw_fd(), number) }, number);
            assert!(!own.is_ours() && !is_own(number));
            drop(own);
            assert!(is_open(number));
            // SAFETY: the copy of above.
            unsafe { libc::close(number) };
        }
    }

    #[test]
    fn one_of_leakchecks_own_that_gets_the_number_is_told_from_the_first() {
        let first = at(901);
        let second = at(901);
        assert!(!first.is_ours() && second.is_ours());
        drop(first);
        assert!(second.is_ours() && is_open(901));
    }
}
