//! The names in a directory. `std::fs::ReadDir` panics if it cannot close the directory.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, openat};

/// Returns the names in `dir`, with their types.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<(OsString, FileType)>> {
    let opened = openat(CWD, dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut found = Vec::new();
    for entry in Dir::new(opened)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            found.push((OsString::from_vec(name.to_vec()), entry.file_type()));
        }
    }
    Ok(found)
}
