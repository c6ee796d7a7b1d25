//! A file in memory: mmap(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::check;

/// Memory that maps the start of a file, for reading. It stays mapped until [`Mapping::unmap`].
#[derive(Debug)]
pub struct Mapping {
    address: *mut libc::c_void,
    length: usize,
}

impl Mapping {
    /// Maps the first bytes of a file.
    pub fn of(file: impl AsFd, length: usize) -> io::Result<Self> {
        let (access, file) = (libc::PROT_READ, file.as_fd().as_raw_fd());
        // SAFETY: a new mapping at an address that the kernel chooses; no code reads it.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, file, 0) };
        if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Mapping { address, length }) }
    }

    /// Where it starts, as `/proc/PID/maps` shows it.
    pub fn address(&self) -> usize {
        self.address.addr()
    }

    /// Unmaps it.
    pub fn unmap(self) -> io::Result<()> {
        // SAFETY: exactly the mapping that `of` made, and nothing refers to it.
        check(unsafe { libc::munmap(self.address, self.length) }.into())
    }
}
