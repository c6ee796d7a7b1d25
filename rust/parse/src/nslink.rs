//! The links in `/proc/PID/ns` (namespaces(7)), whose text is the same on an open namespace FD.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::{At, Result};
use super::scan;

/// The type of a namespace (namespaces(7)).
///
/// `pid_for_children` and `time_for_children` are other *holders* of a `pid` or `time` namespace, not other types:
/// their links read `pid:[…]` and `time:[…]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NsType {
    /// Mounts.
    Mnt,
    /// Process IDs.
    Pid,
    /// Network.
    Net,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host and domain name.
    Uts,
    /// User and group IDs, capabilities.
    User,
    /// Cgroup roots, since Linux 4.6.
    Cgroup,
    /// Boot and monotonic clocks, since Linux 5.6.
    Time,
}

impl NsType {
    /// Every type.
    pub const ALL: [Self; 8] =
        [Self::Mnt, Self::Pid, Self::Net, Self::Ipc, Self::Uts, Self::User, Self::Cgroup, Self::Time];

    /// The name in `/proc/PID/ns` and in link texts.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mnt => "mnt",
            Self::Pid => "pid",
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::User => "user",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
        }
    }

    /// The `CLONE_NEW*` flag that unshare(2) and setns(2) take and that `NS_GET_NSTYPE` (ioctl_ns(2)) returns.
    #[must_use]
    pub fn flag(self) -> libc::c_int {
        match self {
            Self::Mnt => libc::CLONE_NEWNS,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Net => libc::CLONE_NEWNET,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::User => libc::CLONE_NEWUSER,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
            Self::Time => libc::CLONE_NEWTIME,
        }
    }
}

impl fmt::Display for NsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Reads a link text such as `mnt:[4026531841]` into type and inode.
///
/// # Errors
/// If the type is not known or the inode is not a number in brackets.
pub fn parse(link: &[u8]) -> Result<(NsType, u64)> {
    let at = At { format: "namespace link", line: link };
    let (name, inode) = at.need("type", scan::split_once(link, b':'))?;
    let known = NsType::ALL.into_iter().find(|ns_type| ns_type.as_str().as_bytes() == name);
    let ns_type = at.need("type", known)?;
    let inode = at.need("inode", bracketed(inode).and_then(scan::unsigned))?;
    Ok((ns_type, inode))
}

/// What is in `[…]`.
pub(super) fn bracketed(text: &[u8]) -> Option<&[u8]> {
    text.strip_prefix(b"[")?.strip_suffix(b"]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_links_of_a_process() {
        assert_eq!(parse(b"mnt:[4026531832]").unwrap(), (NsType::Mnt, 4_026_531_832));
        assert_eq!(parse(b"cgroup:[4026531835]").unwrap(), (NsType::Cgroup, 4_026_531_835));
        for ns_type in NsType::ALL {
            let link = format!("{ns_type}:[17]");
            assert_eq!(parse(link.as_bytes()).unwrap(), (ns_type, 17));
        }
    }

    #[test]
    fn each_type_has_its_own_flag() {
        let flags = NsType::ALL.into_iter().fold(0, |flags, ns_type| flags | ns_type.flag());
        assert_eq!(flags.count_ones(), 8);
    }

    #[test]
    fn what_only_resembles_a_namespace_is_refused() {
        for (link, field) in [
            (&b""[..], "type"),
            (b"mnt", "type"),
            (b"pid_for_children:[1]", "type"),
            (b"MNT:[1]", "type"),
            (b"mnt:1", "inode"),
            (b"mnt:[]", "inode"),
            (b"mnt:[", "inode"),
            (b"mnt:[-1]", "inode"),
            (b"mnt:[1] (deleted)", "inode"),
        ] {
            assert_eq!(parse(link).unwrap_err().field(), field, "{link:?}");
        }
    }
}
