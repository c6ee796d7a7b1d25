//! `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::cgroup::CgroupEntry;
use super::error::{At, Result};
use super::scan;

/// One mount, as its mount namespace shows it to the reader's root.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mount<'a> {
    /// Reused after umount(2); fdinfo's `mnt_id` refers to it.
    pub id: u32,
    /// The mount that this one is on; itself or unlisted for the root of the tree.
    pub parent_id: u32,
    /// Of `st_dev` for files on it.
    pub major: u32,
    /// Of `st_dev` for files on it.
    pub minor: u32,
    /// Which directory or file of the filesystem is mounted; `net:[…]` and the like on nsfs.
    pub root: Cow<'a, [u8]>,
    /// Where, seen from the process's root.
    pub mount_point: Cow<'a, [u8]>,
    /// Options of this mount, comma separated, escaped as printed.
    pub options: Cow<'a, [u8]>,
    /// The optional fields.
    pub propagation: Propagation,
    /// Filesystem type, `type.subtype` for FUSE.
    pub fs_type: Cow<'a, [u8]>,
    /// What was mounted: a device, or any text. Empty if it was the empty string; `none` if there was none.
    pub source: Cow<'a, [u8]>,
    /// Options of the filesystem, comma separated, escaped as printed.
    pub super_options: Cow<'a, [u8]>,
}

/// How mounts and unmounts spread (mount_namespaces(7)). The default is private.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Propagation {
    /// `shared:N`: member of peer group N.
    pub shared: Option<u32>,
    /// `master:N`: slave of peer group N.
    pub master: Option<u32>,
    /// `propagate_from:N`: the nearest dominant peer group under the process's root.
    pub propagate_from: Option<u32>,
    /// Cannot be bind mounted.
    pub unbindable: bool,
}

impl Mount<'_> {
    /// Whether what is mounted has been removed in its filesystem. Certain: no path has two slashes.
    #[must_use]
    pub fn root_is_deleted(&self) -> bool {
        self.root.ends_with(b"//deleted")
    }

    /// The mount point as a path.
    #[must_use]
    pub fn point(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.mount_point))
    }

    /// Whether this shows the cgroup hierarchy that the entry is of.
    #[must_use]
    pub fn is_hierarchy_of(&self, entry: &CgroupEntry<'_>) -> bool {
        let has = |word: &[u8]| self.super_options.split(|byte| *byte == b',').any(|option| option == word);
        match &*self.fs_type {
            b"cgroup2" => entry.is_v2(),
            b"cgroup" => !entry.is_v2() && entry.controllers.split(|byte| *byte == b',').all(has),
            _ => false,
        }
    }

    /// The same, without the text that it was read from.
    #[must_use]
    pub fn into_owned(self) -> Mount<'static> {
        fn own(bytes: Cow<'_, [u8]>) -> Cow<'static, [u8]> {
            Cow::Owned(bytes.into_owned())
        }
        Mount {
            id: self.id,
            parent_id: self.parent_id,
            major: self.major,
            minor: self.minor,
            root: own(self.root),
            mount_point: own(self.mount_point),
            options: own(self.options),
            propagation: self.propagation,
            fs_type: own(self.fs_type),
            source: own(self.source),
            super_options: own(self.super_options),
        }
    }
}

/// Reads the whole of `/proc/PID/mountinfo`.
///
/// # Errors
/// If a line is no mount or the last one was cut. An unknown optional field is ignored, as the manual asks for.
pub fn parse(input: &[u8]) -> Result<Vec<Mount<'_>>> {
    scan::lines("mountinfo", input)?.map(parse_line).collect()
}

fn parse_line(at: At<'_>) -> Result<Mount<'_>> {
    let mut rest = at.line;
    let id = at.need("mount id", scan::field(&mut rest).and_then(scan::unsigned))?;
    let parent_id = at.need("parent id", scan::field(&mut rest).and_then(scan::unsigned))?;
    let (major, minor) = at.need("major:minor", scan::field(&mut rest).and_then(device))?;
    let root = at.need("root", scan::field(&mut rest))?;
    let mount_point = at.need("mount point", scan::field(&mut rest))?;
    let options = at.need("mount options", scan::field(&mut rest))?;
    let mut propagation = Propagation::default();
    loop {
        match at.need("separator", scan::field(&mut rest))? {
            b"-" => break,
            optional => at.need("optional field", propagation.read(optional))?,
        }
    }
    let fs_type = at.need("filesystem type", scan::field(&mut rest))?;
    let source = at.need("source", scan::field(&mut rest))?;
    Ok(Mount {
        id,
        parent_id,
        major,
        minor,
        root: unescape(root),
        mount_point: unescape(mount_point),
        options: Cow::Borrowed(options),
        propagation,
        fs_type: unescape(fs_type),
        source: unescape(source),
        super_options: Cow::Borrowed(rest),
    })
}

fn device(text: &[u8]) -> Option<(u32, u32)> {
    let (major, minor) = scan::split_once(text, b':')?;
    Some((scan::unsigned(major)?, scan::unsigned(minor)?))
}

impl Propagation {
    fn read(&mut self, optional: &[u8]) -> Option<()> {
        let (tag, value) = scan::split_once(optional, b':').unwrap_or((optional, b""));
        let slot = match tag {
            b"shared" => &mut self.shared,
            b"master" => &mut self.master,
            b"propagate_from" => &mut self.propagate_from,
            b"unbindable" => {
                self.unbindable = true;
                return Some(());
            }
            _ => return Some(()),
        };
        *slot = Some(scan::unsigned(value)?);
        Some(())
    }
}

/// Whether the contents of a file system of this type come from a server, or another machine can affect them: then a
/// walk through it may wait forever.
#[must_use]
pub fn is_served(fs_type: &[u8]) -> bool {
    const SERVED: [&[u8]; 20] = [
        b"9p",
        b"acfs",
        b"afs",
        b"autofs",
        b"beegfs",
        b"ceph",
        b"cifs",
        b"coda",
        b"gfs2",
        b"glusterfs",
        b"gpfs",
        b"lustre",
        b"ncpfs",
        b"nfs",
        b"nfs4",
        b"ocfs2",
        b"orangefs",
        b"smb3",
        b"smbfs",
        b"virtiofs",
    ];
    SERVED.contains(&fs_type) || fs_type.starts_with(b"fuse") && fs_type != b"fusectl"
}

/// Undoes `mangle()` and `seq_path()`, which write a blank, newline, backslash or hash sign as `\` and three octal
/// digits. A backslash that begins no such escape stays: filesystems print some names themselves.
fn unescape(text: &[u8]) -> Cow<'_, [u8]> {
    let Some(first) = memchr::memchr(b'\\', text) else {
        return Cow::Borrowed(text);
    };
    let mut bytes = Vec::with_capacity(text.len());
    bytes.extend_from_slice(&text[..first]);
    let mut rest = &text[first..];
    while let Some((byte, after)) = rest.split_first() {
        match (byte, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    Cow::Owned(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REAL: &[u8] = br"43 42 254:0 / / rw,relatime - ext4 /dev/vda rw,discard,resv_strict,resuid=65534
65 43 0:41 / /tmp/t/sp\040ace rw,relatime - tmpfs sp\040ace rw,size=4k
66 43 0:42 / /tmp/t/nl\012x rw,relatime - tmpfs nl\012x rw,size=4k
67 43 0:43 / /tmp/t/tab\011x rw,relatime - tmpfs tab\011x rw,size=4k
68 43 0:44 / /tmp/t/bs\134x rw,relatime - tmpfs bs\134x rw,size=4k
69 43 0:45 / /tmp/t/h#x rw,relatime - tmpfs h\043x rw,size=4k
70 43 0:46 / /tmp/t/a\040-\040b rw,relatime - tmpfs a\040-\040b rw,size=4k
72 43 0:48 / /tmp/t/empty rw,relatime shared:1 - tmpfs  rw,size=4k
73 43 0:49 / /tmp/t/null rw,relatime - tmpfs none rw,size=4k
75 43 0:48 / /tmp/t/slave rw,relatime shared:2 master:1 - tmpfs  rw,size=4k
76 43 0:51 / /tmp/t/unb rw,relatime unbindable - tmpfs x rw
";

    #[test]
    fn reads_the_root_mount() {
        let root = parse(REAL).unwrap().swap_remove(0);
        let expected = Mount {
            id: 43,
            parent_id: 42,
            major: 254,
            minor: 0,
            root: b"/".into(),
            mount_point: b"/".into(),
            options: b"rw,relatime".into(),
            propagation: Propagation::default(),
            fs_type: b"ext4".into(),
            source: b"/dev/vda".into(),
            super_options: b"rw,discard,resv_strict,resuid=65534".into(),
        };
        assert_eq!(root, expected);
        assert_eq!(root.into_owned(), expected);
    }

    #[test]
    fn escaped_names_come_back() {
        let mounts = parse(REAL).unwrap();
        let names: Vec<&[u8]> = mounts[1..7].iter().map(|mount| &mount.mount_point[7..]).collect();
        assert_eq!(names, [&b"sp ace"[..], b"nl\nx", b"tab\tx", b"bs\\x", b"h#x", b"a - b"]);
        assert!(mounts[1..7].iter().all(|mount| *mount.source == mount.mount_point[7..]));
    }

    #[test]
    fn an_empty_source_differs_from_no_source() {
        let mounts = parse(REAL).unwrap();
        assert_eq!((&*mounts[7].source, &*mounts[7].super_options), (&b""[..], &b"rw,size=4k"[..]));
        assert_eq!(&*mounts[8].source, b"none");
    }

    #[test]
    fn propagation_is_read_and_unknown_optional_fields_are_ignored() {
        let mounts = parse(REAL).unwrap();
        assert_eq!(mounts[9].propagation, Propagation { shared: Some(2), master: Some(1), ..Default::default() });
        assert!(mounts[10].propagation.unbindable);
        let future = parse(b"1 2 0:3 / /a rw new:x,y master:4 propagate_from:5 other - fuse.a b rw\n").unwrap();
        let expected = Propagation { master: Some(4), propagate_from: Some(5), ..Default::default() };
        assert_eq!(future[0].propagation, expected);
    }

    #[test]
    fn a_namespace_and_a_removed_directory_can_be_mounted() {
        let mounts = parse(
            b"80 43 0:4 net:[4026532180] /run/netns/x rw - nsfs nsfs rw\n\
81 43 254:0 /tmp/gone//deleted /mnt rw - ext4 /dev/vda rw\n",
        )
        .unwrap();
        assert_eq!(&*mounts[0].root, b"net:[4026532180]");
        assert!(!mounts[0].root_is_deleted() && mounts[1].root_is_deleted());
    }

    #[test]
    fn a_backslash_without_three_octal_digits_stays() {
        for text in [&br"a\"[..], br"a\0", br"a\04", br"a\04x", br"a\900", br"a\400"] {
            assert_eq!(&*unescape(text), text);
        }
        assert_eq!(&*unescape(br"\377\\040"), b"\xff\\ ");
    }

    #[test]
    fn an_error_names_the_field() {
        for (line, field) in [
            (&b"\n"[..], "mount id"),
            (b"1 x\n", "parent id"),
            (b"1 2 3 / /\n", "major:minor"),
            (b"1 2 0:3 /\n", "root"),
            (b"1 2 0:3 / /\n", "mount point"),
            (b"1 2 0:3 / / rw\n", "mount options"),
            (b"1 2 0:3 / / rw shared:1\n", "separator"),
            (b"1 2 0:3 / / rw shared:x - a b c\n", "optional field"),
            (b"1 2 0:3 / / rw - tmpfs\n", "filesystem type"),
            (b"1 2 0:3 / / rw - tmpfs a\n", "source"),
            (b"1 2 0:3 / / rw - tmpfs a rw", "end of line"),
        ] {
            assert_eq!(parse(line).unwrap_err().field(), field);
        }
    }

    #[test]
    fn what_a_server_answers_for_is_known_by_its_type() {
        for served in ["fuse", "fuse.sshfs", "fuseblk", "nfs", "nfs4", "9p", "autofs", "virtiofs"] {
            assert!(is_served(served.as_bytes()), "{served}");
        }
        for local in ["ext4", "tmpfs", "overlay", "fusectl", ""] {
            assert!(!is_served(local.as_bytes()), "{local}");
        }
    }
}
