//! Reading small files of procfs and sysfs in few system calls.

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::arena::ArenaView;
use crate::error::{Error, Result};
use crate::resource::Fd;

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
    // Paths here are numbers and fixed words; what did not fit would be cut and not be found.
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

/// As [`read_all`], in the place of what is in `text`.
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

/// Reads a whole file of procfs or sysfs.
pub(crate) fn read_file(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::io("open", path, e))?;
    read_all(file.as_fd()).map_err(|e| Error::io("read", path, e))
}

/// The fdinfo files of many descriptors, read through one descriptor of `/proc`, the arena's if there is one.
pub(super) struct Fdinfo<'a> {
    proc: Place<'a>,
    text: Vec<u8>,
}

enum Place<'a> {
    Host(OwnedFd),
    Arena(&'a OwnedFd),
}

impl<'a> Fdinfo<'a> {
    pub(super) fn open(arena: Option<&'a ArenaView>) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = match arena {
            Some(arena) => Place::Arena(&arena.proc),
            None => {
                let opened = rustix::fs::open("/proc", flags, Mode::empty());
                Place::Host(opened.map_err(|e| Error::io("open directory", "/proc", e))?)
            }
        };
        Ok(Fdinfo { proc, text: Vec::new() })
    }

    /// The text; empty when the descriptor is gone.
    pub(super) fn of(&mut self, fd: &Fd) -> &[u8] {
        let name = if fd.table == fd.pid {
            path(&format_args!("{}/fdinfo/{}", fd.pid, fd.fd))
        } else {
            path(&format_args!("{}/task/{}/fdinfo/{}", fd.pid, fd.table, fd.fd))
        };
        self.text.clear();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let proc = match &self.proc {
            Place::Host(proc) => proc,
            Place::Arena(proc) => *proc,
        };
        let Ok(file) = rustix::fs::openat(proc, name.as_c_str(), flags, Mode::empty()) else { return &[] };
        self.text.reserve(16384);
        while let Ok(more @ 1..) = rustix::io::read(&file, spare_capacity(&mut self.text)) {
            // What is longer than a page comes in several reads, and the last is short.
            if more < 2048 {
                break;
            }
            self.text.reserve(16384);
        }
        &self.text
    }
}
