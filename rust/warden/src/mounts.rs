//! The mounts that this process sees (proc(5), `/proc/PID/mountinfo`). Their paths need be no UTF-8.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// A line of mountinfo.
#[derive(Debug, PartialEq)]
pub(crate) struct Mount {
    /// The mount's id.
    pub(crate) id: u64,
    /// The part of the file system that is mounted.
    pub(crate) root: OsString,
    /// Where it is mounted.
    pub(crate) target: PathBuf,
    pub(crate) fs_type: String,
    /// Options of the file system itself, as they were given: `rw,cpu,cpuacct`.
    pub(crate) options: String,
}

impl Mount {
    /// Whether a server answers for what is in it, or nobody: a walk through it is not begun.
    pub(crate) fn may_hang(&self) -> bool {
        const SERVED: [&str; 10] = ["9p", "afs", "autofs", "ceph", "cifs", "coda", "nfs", "nfs4", "smb3", "virtiofs"];
        SERVED.contains(&self.fs_type.as_str()) || self.fs_type.starts_with("fuse") && self.fs_type != "fusectl"
    }
}

/// The text, to be compared with a later one.
pub(crate) fn text() -> io::Result<Vec<u8>> {
    std::fs::read("/proc/self/mountinfo")
}

/// All of them, each after what it lies on.
pub(crate) fn list() -> io::Result<Vec<Mount>> {
    Ok(parse(&text()?))
}

/// The id of the mount that an open descriptor is on; the file system is not asked (proc(5), `fdinfo`).
pub(crate) fn id_of(fd: &OwnedFd) -> io::Result<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| io::Error::other("fdinfo without mnt_id"))
}

fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    // No field holds a space: it is escaped.
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    Some(Mount {
        id: text(fields[0]).parse().ok()?,
        root: unescape(fields[3]),
        target: unescape(fields[4]).into(),
        fs_type: text(fields.get(dash + 1)?),
        options: text(fields.get(dash + 3)?),
    })
}

/// Replaces `\ooo`, by which the kernel writes blanks, line feeds and backslashes.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| first == b'\\').and_then(|digits| {
            digits.iter().try_fold(0u16, |sum, d| (b'0'..=b'7').contains(d).then(|| sum * 8 + u16::from(d - b'0')))
        });
        match code.and_then(|code| u8::try_from(code).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &after[3..];
            }
            None => {
                plain.push(first);
                rest = after;
            }
        }
    }
    OsString::from_vec(plain)
}

/// How a path is shown: one line of UTF-8, whatever it holds.
pub(crate) fn shown(path: impl AsRef<OsStr>) -> String {
    path.as_ref().as_bytes().escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_no_utf_8_or_has_escapes_is_read_byte_by_byte() {
        let line = b"36 35 98:0 /a\\040b /mnt/\xff\\134040\\012x rw,noatime shared:1 master:2 - ext4 /dev/r\\040o rw,errors=continue";
        let mount = parse_line(line).unwrap();
        assert_eq!(mount.target.as_os_str().as_bytes(), b"/mnt/\xff\\040\nx");
        assert_eq!((mount.root.as_bytes(), mount.fs_type.as_str()), (&b"/a b"[..], "ext4"));
        assert_eq!((mount.id, mount.options.as_str()), (36, "rw,errors=continue"));
        assert_eq!(shown(&mount.target), "/mnt/\\xff\\\\040\\nx");
    }

    #[test]
    fn a_line_without_optional_fields_or_with_a_dash_as_a_path_is_read() {
        let mount = parse_line(b"1 0 0:1 / - rw - tmpfs none rw,size=1").unwrap();
        assert_eq!((mount.target.as_os_str(), mount.options.as_str()), (OsStr::new("-"), "rw,size=1"));
        assert_eq!(parse(b"\n1 0 0:1 /\n\\"), []);
    }

    #[test]
    fn who_may_not_answer_is_known_by_its_file_system() {
        let of = |fs: &str| parse_line(format!("1 0 0:1 / /x rw - {fs} x rw").as_bytes()).unwrap().may_hang();
        assert!(!of("ext4") && !of("tmpfs") && !of("overlay"));
        assert!(of("fuse") && of("fuse.sshfs") && of("fuseblk") && of("nfs4") && of("9p"));
    }
}
