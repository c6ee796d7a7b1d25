//! The links in `/proc/PID/fd` (proc_pid_fd(5)), also those of `cwd`, `root` and `exe`.

use super::nslink::{self, NsType};
use super::{scan, split_deleted};

/// What a link text says that an FD refers to.
///
/// The text is a hint, not an identity. Only files with a path begin with `/`, so no file can pose as a socket, a
/// pipe or an anonymous inode; but any of their names is possible in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FdLink<'a> {
    /// A file, directory, device or FIFO with a path.
    Path {
        /// As seen from the reader's root, without the ` (deleted)` that `deleted` stands for.
        path: &'a [u8],
        /// The text ended in ` (deleted)`: *maybe* deleted. A living file may be named so; `st_nlink` of the file
        /// decides (0 for a deleted file; a removed directory has 0 too on most filesystems).
        deleted: bool,
    },
    /// A socket, by its inode on sockfs.
    Socket(u64),
    /// A pipe, by its inode on pipefs.
    Pipe(u64),
    /// An anonymous inode, by its type as printed: `[eventfd]`, `[eventpoll]`, `inotify`, `bpf-map` …
    ///
    /// A pidfd is `[pidfd]` whether it is printed `anon_inode:[pidfd]` or, as by Linux 6.9 with pidfs,
    /// `pidfd:[INODE]`; its inode is in `st_ino` and in fdinfo's `ino`.
    AnonInode(&'a [u8]),
    /// A namespace, by its type and inode.
    Namespace(NsType, u64),
    /// A memory file (memfd_create(2)).
    Memfd {
        /// The name that its creator gave it.
        name: &'a [u8],
        /// True for every real memfd, which never had a link; false only for a file in `/` that is named
        /// `memfd:…`. Such a file, deleted, reads the same as a memfd: `st_dev` tells them apart.
        deleted: bool,
    },
    /// Any other text, such as that of a filesystem with its own `d_dname`.
    Other(&'a [u8]),
}

/// Reads a link text. Never fails: what is not known is [`FdLink::Other`].
#[must_use]
pub fn parse(link: &[u8]) -> FdLink<'_> {
    if link.starts_with(b"/") {
        let (path, deleted) = split_deleted(link);
        return match path.strip_prefix(b"/memfd:") {
            Some(name) => FdLink::Memfd { name, deleted },
            None => FdLink::Path { path, deleted },
        };
    }
    pseudo(link).unwrap_or(FdLink::Other(link))
}

fn pseudo(link: &[u8]) -> Option<FdLink<'_>> {
    let (kind, rest) = scan::split_once(link, b':')?;
    let inode = || nslink::bracketed(rest).and_then(scan::unsigned);
    match kind {
        b"socket" => inode().map(FdLink::Socket),
        b"pipe" => inode().map(FdLink::Pipe),
        b"pidfd" => inode().map(|_| FdLink::AnonInode(b"[pidfd]")),
        b"anon_inode" => Some(FdLink::AnonInode(rest)),
        _ => nslink::parse(link).ok().map(|(ns_type, inode)| FdLink::Namespace(ns_type, inode)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_links_that_this_kernel_printed() {
        for (link, expected) in [
            (&b"/dev/null"[..], FdLink::Path { path: b"/dev/null", deleted: false }),
            (b"socket:[16657]", FdLink::Socket(16657)),
            (b"pipe:[14275]", FdLink::Pipe(14275)),
            (b"anon_inode:[eventpoll]", FdLink::AnonInode(b"[eventpoll]")),
            (b"anon_inode:inotify", FdLink::AnonInode(b"inotify")),
            (b"anon_inode:bpf-map", FdLink::AnonInode(b"bpf-map")),
            (b"anon_inode:[pidfd]", FdLink::AnonInode(b"[pidfd]")),
            (b"net:[4026532180]", FdLink::Namespace(NsType::Net, 4_026_532_180)),
            (b"/memfd:a b\n(x) (deleted)", FdLink::Memfd { name: b"a b\n(x)", deleted: true }),
            (b"/lcq (deleted)", FdLink::Path { path: b"/lcq", deleted: true }),
        ] {
            assert_eq!(parse(link), expected);
        }
    }

    #[test]
    fn a_pidfd_on_pidfs_of_linux_6_9_is_a_pidfd() {
        assert_eq!(parse(b"pidfd:[1234]"), FdLink::AnonInode(b"[pidfd]"));
    }

    #[test]
    fn a_living_file_may_be_named_deleted_and_is_only_maybe_deleted() {
        let living = b"/tmp/t/a\nb \\ (deleted)\xff";
        assert_eq!(parse(living), FdLink::Path { path: living, deleted: false });
        let deleted = b"/tmp/t/a\nb \\ (deleted)\xff (deleted)";
        assert_eq!(parse(deleted), FdLink::Path { path: living, deleted: true });
        assert_eq!(parse(b"/tmp/x (deleted)"), FdLink::Path { path: b"/tmp/x", deleted: true });
    }

    #[test]
    fn a_file_cannot_pose_as_a_socket() {
        let path = b"/tmp/socket:[1]";
        assert_eq!(parse(path), FdLink::Path { path, deleted: false });
        assert_eq!(parse(b"socket:[1]x"), FdLink::Other(b"socket:[1]x"));
        assert_eq!(parse(b"/memfd:x"), FdLink::Memfd { name: b"x", deleted: false });
    }

    #[test]
    fn anything_else_is_kept_as_it_is() {
        for link in [&b""[..], b"x", b":", b"socket:[", b"socket:[-1]", b"foo:[1]", b" (deleted)", b"\xff"] {
            assert_eq!(parse(link), FdLink::Other(link));
        }
    }
}
