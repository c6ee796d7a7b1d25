//! Reading small files of procfs and sysfs, in few system calls.

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::BorrowedFd;

use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// A short path, formatted without the allocator.
pub(super) struct ShortPath([u8; 96]);

impl ShortPath {
    pub(super) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

impl std::ops::Deref for ShortPath {
    type Target = CStr;
    fn deref(&self) -> &CStr {
        self.as_c_str()
    }
}

pub(super) fn path(args: &std::fmt::Arguments<'_>) -> ShortPath {
    let mut buffer = [0u8; 96];
    // Paths here are numbers and fixed words; a path that does not fit would be cut and not found.
    let _ = (&mut buffer[..95]).write_fmt(*args);
    ShortPath(buffer)
}

/// Reads a file that fits the buffer, in one read.
pub(super) fn read_small<'b>(dir: BorrowedFd<'_>, name: &CStr, buffer: &'b mut [u8]) -> rustix::io::Result<&'b [u8]> {
    let file = rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let n = rustix::io::read(&file, &mut *buffer)?;
    Ok(&buffer[..n])
}

/// Reads a file of any size.
pub(crate) fn read_all(file: BorrowedFd<'_>) -> rustix::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    read_into(file, &mut text)?;
    Ok(text)
}

/// As [`read_all`], replacing the contents of `text`.
pub(super) fn read_into(file: BorrowedFd<'_>, text: &mut Vec<u8>) -> rustix::io::Result<()> {
    text.clear();
    loop {
        if text.capacity() - text.len() < 4096 {
            text.reserve(text.len().max(16384));
        }
        match rustix::io::read(file, spare_capacity(text)) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}
