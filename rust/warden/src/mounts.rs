//! The mounts that this process sees (proc(5), `/proc/PID/mountinfo`). Their paths need not be UTF-8.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use leakcheck_parse::mountinfo;

pub(crate) type Mount = mountinfo::Mount<'static>;

/// The text, for comparison with a later one.
pub(crate) fn text() -> io::Result<Vec<u8>> {
    std::fs::read("/proc/self/mountinfo")
}

/// All of them, each after the mount that it is on.
pub(crate) fn list() -> io::Result<Vec<Mount>> {
    let text = text()?;
    let mounts = mountinfo::parse(&text)?;
    Ok(mounts.into_iter().map(mountinfo::Mount::into_owned).collect())
}

/// The id of the mount that an open descriptor is on (proc(5), `fdinfo`). This sends no request to the file system.
pub(crate) fn id_of(fd: &OwnedFd) -> io::Result<u32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| io::Error::other("fdinfo without mnt_id"))
}

/// A path as one line of UTF-8, whatever bytes it contains.
pub(crate) fn shown(path: impl AsRef<OsStr>) -> String {
    path.as_ref().as_bytes().escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_not_utf_8_is_shown_on_one_line() {
        assert_eq!(shown(OsStr::from_bytes(b"/mnt/\xff\\040\nx")), "/mnt/\\xff\\\\040\\nx");
    }
}
