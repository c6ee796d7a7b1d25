//! Kernel text and netlink messages → records. Bytes in, records out, no I/O; one file per format.
//!
//! All input is hostile: names contain spaces, parentheses, newlines, escapes and invalid UTF-8, and a read may be cut
//! short. Input without the documented form gives a [`ParseError`] that names the field and quotes the start of the
//! line; nothing panics, and every parser is linear in its input. Where the kernel itself prints a name ambiguously,
//! the record's documentation says so, and how a caller can decide.
//!
//! Line formats end every line with a newline, so a last line without one was cut and is refused: `12` may have been
//! `1234`.

#![forbid(unsafe_code)]

mod error;
mod scan;

pub mod cgroup;
pub mod fdinfo;
pub mod fdlink;
pub mod keys;
pub mod locks;
pub mod maps;
pub mod mountinfo;
pub mod netlink;
pub mod nslink;
pub mod sockstat;
pub mod stat;
pub mod status;
pub mod sysvipc;
pub mod text;
pub mod xtables;

pub use error::{ParseError, Result};

/// What the kernel appends to the path of a file or cgroup that no longer has a name (`d_path()`,
/// `kernfs_path()`).
///
/// The name of an existing file may end in it too. So a parser can only say *maybe deleted*.
const DELETED: &[u8] = b" (deleted)";

/// Splits the suffix off a printed path: the name, and whether it may be deleted.
fn split_deleted(printed: &[u8]) -> (&[u8], bool) {
    match printed.strip_suffix(DELETED) {
        Some(name) if !name.is_empty() => (name, true),
        _ => (printed, false),
    }
}

/// A device number, as `stat(2)` has it in `st_dev` and `/proc` prints it in two parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    /// The driver's or, if 0, the anonymous-device number space.
    pub major: u32,
    /// The device within it.
    pub minor: u32,
}

impl Device {
    /// From `st_dev` in glibc's encoding (makedev(3)).
    #[must_use]
    pub fn from_raw(raw: u64) -> Self {
        Self { major: libc::major(raw), minor: libc::minor(raw) }
    }

    /// To `st_dev` in glibc's encoding (makedev(3)).
    #[must_use]
    pub fn to_raw(self) -> u64 {
        libc::makedev(self.major, self.minor)
    }

    /// From `major:minor` in hexadecimal, the form of `/proc/locks` and `/proc/PID/maps`.
    fn from_hex(text: &[u8]) -> Option<Self> {
        let (major, minor) = scan::split_once(text, b':')?;
        Some(Self { major: scan::hex(major)?, minor: scan::hex(minor)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_keeps_its_number_in_both_encodings() {
        for (major, minor) in [(254, 0), (0, 1), (8, 0xfffff), (0xfff, 3)] {
            let device = Device { major, minor };
            assert_eq!(Device::from_raw(device.to_raw()), device);
        }
        assert_eq!(Device::from_hex(b"fe:00"), Some(Device { major: 254, minor: 0 }));
        assert_eq!(Device::from_hex(b"fe00"), None);
    }

    #[test]
    fn a_name_that_is_only_the_suffix_is_a_name() {
        assert_eq!(split_deleted(b" (deleted)"), (b" (deleted)".as_slice(), false));
        assert_eq!(split_deleted(b"/a (deleted) (deleted)"), (b"/a (deleted)".as_slice(), true));
    }
}
