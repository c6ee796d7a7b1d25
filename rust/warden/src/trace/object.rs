//! The objects that traced calls are about, by what stays the same of each: device, inode, mount.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::ffi::OsStringExt as _;

use leakcheck_parse::text::Text;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, openat2, statx};
use serde::Serialize;

use super::points::{link, without_root};

/// `STATX_MNT_ID_UNIQUE` (Linux 6.8).
const UNIQUE_MOUNT: StatxFlags = StatxFlags::from_bits_retain(0x4000);
/// File systems on which a look may wait for a server, which may be one of the processes that are stopped.
const SLOW: &[&str] = &["fuse", "nfs", "9p", "cifs", "smb", "ceph", "afs", "autofs", "virtiofs"];

/// A file, directory, socket, or mount.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Object {
    /// Where it is, as the arena's first mount namespace or that of the caller shows it.
    path: Text,
    dev: String,
    ino: u64,
    /// The mount on which it is.
    mount: u64,
}

/// What a call names.
#[derive(Debug)]
pub(super) enum Place {
    /// A descriptor.
    Descriptor(u64),
    /// A path; relative to this descriptor, or to the working directory.
    Path { base: Option<i32>, name: Vec<u8>, follows: bool },
}

/// The object of a thread's call; none if it does not exist, or could only be guessed.
pub(super) fn find(pid: i32, place: &Place) -> Option<Object> {
    match place {
        Place::Descriptor(fd) => at(&format!("/proc/{pid}/fd/{fd}")),
        Place::Path { base, name, follows } => find_path(pid, *base, name, *follows),
    }
}

fn find_path(pid: i32, base: Option<i32>, name: &[u8], follows: bool) -> Option<Object> {
    let own = [&b"/proc/self/"[..], b"/proc/thread-self/"].iter().find_map(|start| name.strip_prefix(*start));
    let (base, name, resolve) = match (own, name, base) {
        // Resolved here, it would be of this process.
        (Some(own), ..) => {
            let mut parts = own.splitn(3, |byte| *byte == b'/');
            let (Some(b"fd"), Some(fd), rest) = (parts.next(), parts.next(), parts.next()) else { return None };
            let fd = std::str::from_utf8(fd).ok()?.parse::<u32>().ok()?;
            (format!("fd/{fd}"), rest.unwrap_or_default(), ResolveFlags::BENEATH)
        }
        (None, [b'/', ..], _) => ("root".to_owned(), name, ResolveFlags::IN_ROOT),
        (None, _, Some(fd)) => (format!("fd/{fd}"), name, ResolveFlags::BENEATH),
        (None, _, None) => ("cwd".to_owned(), name, ResolveFlags::BENEATH),
    };
    let base = format!("/proc/{pid}/{base}");
    if name.is_empty() {
        return at(&base);
    }
    let top = rustix::fs::open(&base, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let how = if follows { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
    let resolve = resolve | ResolveFlags::NO_MAGICLINKS;
    let found = openat2(top.as_fd(), name, how | OFlags::CLOEXEC, Mode::empty(), resolve).ok()?;
    at(&format!("/proc/self/fd/{}", found.as_raw_fd()))
}

/// The object to which a link of procfs leads.
fn at(magic: &str) -> Option<Object> {
    let found = statx(CWD, magic, AtFlags::STATX_DONT_SYNC, StatxFlags::INO | UNIQUE_MOUNT).ok()?;
    let path = without_root(fs::read_link(magic).ok()?.into_os_string().into_vec());
    let dev = format!("{}:{}", found.stx_dev_major, found.stx_dev_minor);
    Some(Object { path: Text::from(path.as_slice()), dev, ino: found.stx_ino, mount: found.stx_mnt_id })
}

/// Whether a look at a path of a process's may have to wait for somebody.
pub(super) fn is_slow(pid: i32) -> bool {
    let Ok(mounts) = fs::read(format!("/proc/{pid}/mountinfo")) else { return true };
    String::from_utf8_lossy(&mounts)
        .lines()
        .filter_map(|line| line.split_once(" - "))
        .any(|(_, file_system)| SLOW.iter().any(|slow| file_system.starts_with(slow)))
}

/// The process id that the arena shows.
pub(super) fn arena_pid(pid: i32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    numbers.split_ascii_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(pid)
}

/// The inodes of a process's namespaces.
pub(super) fn namespaces(pid: i32) -> serde_json::Value {
    let inode = |name: &str| -> Option<u64> {
        let text = link(pid, &format!("ns/{name}"));
        std::str::from_utf8(&text).ok()?.split_once('[')?.1.strip_suffix(']')?.parse().ok()
    };
    let names = ["mnt", "pid", "net", "ipc", "uts", "cgroup", "user"];
    names.into_iter().filter_map(|name| Some((name, inode(name)?))).collect()
}
