//! `/proc/PID/maps` (proc_pid_maps(5)), above all what only a mapping keeps alive.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::error::{At, Result};
use super::{DELETED, Device, scan};

/// One mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mapping<'a> {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// `rwx` or `-` each, then `p`rivate or `s`hared.
    pub perms: [u8; 4],
    /// Where in the file it starts, in bytes.
    pub offset: u64,
    /// The file's device, 0:0 for anonymous memory. On btrfs and overlayfs it may differ from `st_dev`.
    pub dev: Device,
    /// The file's inode, 0 for anonymous memory.
    pub inode: u64,
    /// What is printed at the end: a path, `[heap]`, `[anon:NAME]`, or empty. Only a newline is escaped in it, as
    /// `\012`, so it cannot be told from the four characters: the identity is device and inode.
    pub path: &'a [u8],
}

/// A mapping whose path ends in ` (deleted)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeletedMapping<'a> {
    /// The file's device.
    pub dev: Device,
    /// The file's inode.
    pub inode: u64,
    /// As in [`Mapping::path`], without the ` (deleted)`. A living file may be named so too.
    pub path: &'a [u8],
}

impl DeletedMapping<'_> {
    /// Whether this is memory shared between relatives (`MAP_SHARED|MAP_ANONYMOUS` of mmap(2)), which the kernel
    /// backs by a nameless file on its own tmpfs and prints as `/dev/zero (deleted)`.
    #[must_use]
    pub fn is_shared_anonymous(&self) -> bool {
        self.dev.major == 0 && self.path == b"/dev/zero"
    }
}

const FORMAT: &str = "maps";

/// Reads one line without its newline.
///
/// # Errors
/// If one of the five columns before the path is missing or malformed.
pub fn parse_line(line: &[u8]) -> Result<Mapping<'_>> {
    let at = At { format: FORMAT, line };
    let mut rest = line;
    let (start, end) = at.need("address", scan::field(&mut rest).and_then(range))?;
    let perms = at.need("perms", scan::field(&mut rest).and_then(|perms| perms.try_into().ok()))?;
    let offset = at.need("offset", scan::field(&mut rest).and_then(scan::hex))?;
    let dev = at.need("dev", scan::field(&mut rest).and_then(Device::from_hex))?;
    let inode = at.need("inode", scan::unsigned(scan::word(&mut rest)))?;
    Ok(Mapping { start, end, perms, offset, dev, inode, path: scan::trim_blanks(rest) })
}

fn range(text: &[u8]) -> Option<(u64, u64)> {
    let (start, end) = scan::split_once(text, b'-')?;
    Some((scan::hex(start)?, scan::hex(end)?))
}

/// The mappings of deleted files: unlinked libraries, memfds, SysV segments marked for removal.
///
/// Lines that do not end in ` (deleted)` are not parsed but searched, at memory speed. A last line that was cut
/// gives an error, since it may have been one.
#[must_use]
pub fn deleted(input: &[u8]) -> Deleted<'_> {
    Deleted { rest: input }
}

/// See [`deleted`].
#[derive(Debug, Clone)]
pub struct Deleted<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Deleted<'a> {
    type Item = Result<DeletedMapping<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b" (deleted)\n"));
        while let Some(suffix) = FINDER.find(self.rest) {
            let start = memchr::memrchr(b'\n', &self.rest[..suffix]).map_or(0, |newline| newline + 1);
            let line = &self.rest[start..suffix];
            self.rest = &self.rest[suffix + DELETED.len() + 1..];
            match parse_line(line) {
                // `[anon:… (deleted)]` cannot be; other names without a slash are no files.
                Ok(Mapping { dev, inode, path, .. }) if path.starts_with(b"/") => {
                    return Some(Ok(DeletedMapping { dev, inode, path }));
                }
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
        }
        let rest = std::mem::take(&mut self.rest);
        let cut = &rest[memchr::memrchr(b'\n', rest).map_or(0, |newline| newline + 1)..];
        (!cut.is_empty()).then(|| Err(At { format: FORMAT, line: cut }.error("end of line")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &[u8] = b"55645bc94000-55645bc96000 r--p 00000000 fe:00 247278                     /usr/bin/head\n\
55647ecf2000-55647ed13000 rw-p 00000000 00:00 0                          [heap]\n\
7f1998c24000-7f1998c27000 rw-p 00000000 00:00 0 \n\
7fc55d9d4000-7fc55d9d5000 rw-s 00000000 00:01 1025                       /dev/zero (deleted)\n\
7fc55e623000-7fc55e624000 rw-s 00000000 00:01 1024                       /memfd:a b\\012(x) (deleted)\n\
7fc55e624000-7fc55e625000 rw-s 00000000 fe:00 9978130                    /tmp/t/a\\012b \\ (deleted)\xff (deleted)\n\
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";

    #[test]
    fn reads_every_line_of_a_process() {
        let lines: Vec<_> = MAPS.split_inclusive(|byte| *byte == b'\n').map(|line| &line[..line.len() - 1]).collect();
        let head = parse_line(lines[0]).unwrap();
        assert_eq!((head.start, head.end, head.inode), (0x5564_5bc9_4000, 0x5564_5bc9_6000, 247_278));
        assert_eq!((&head.perms, head.dev), (b"r--p", Device { major: 254, minor: 0 }));
        let paths: Vec<_> = lines[..4].iter().map(|line| parse_line(line).unwrap().path).collect();
        assert_eq!(paths, [&b"/usr/bin/head"[..], b"[heap]", b"", b"/dev/zero (deleted)"]);
        assert_eq!(parse_line(lines[6]).unwrap().end, 0xffff_ffff_ff60_1000);
    }

    #[test]
    fn finds_what_only_mappings_keep_alive() {
        let found: Vec<_> = deleted(MAPS).map(|mapping| mapping.unwrap()).collect();
        let names: Vec<_> = found.iter().map(|mapping| (mapping.inode, mapping.path)).collect();
        assert_eq!(
            names,
            [(1025, &b"/dev/zero"[..]), (1024, b"/memfd:a b\\012(x)"), (9_978_130, b"/tmp/t/a\\012b \\ (deleted)\xff"),]
        );
        assert!(found[0].is_shared_anonymous() && !found[1].is_shared_anonymous());
    }

    #[test]
    fn a_malformed_line_is_an_error_and_the_search_goes_on() {
        let mut text = b"garbage (deleted)\n".to_vec();
        text.extend_from_slice(MAPS);
        let found: Vec<_> = deleted(&text).collect();
        assert_eq!((found.len(), found[0].as_ref().unwrap_err().field()), (4, "address"));
    }

    #[test]
    fn a_cut_last_line_is_an_error_once() {
        let mut search = deleted(b"a-b r--p 0 fe:00 1 /x (deleted");
        assert_eq!(search.next().unwrap().unwrap_err().field(), "end of line");
        assert!(search.next().is_none());
        assert_eq!(deleted(b"").count(), 0);
    }

    #[test]
    fn an_error_names_the_column() {
        for (line, field) in [
            (&b""[..], "address"),
            (b"0 r--p 0 0:0 0 ", "address"),
            (b"0-1 r-p 0 0:0 0 ", "perms"),
            (b"0-1 r--p x 0:0 0 ", "offset"),
            (b"0-1 r--p 0 00 0 ", "dev"),
            (b"0-1 r--p 0 0:0 ", "inode"),
        ] {
            assert_eq!(parse_line(line).unwrap_err().field(), field);
        }
    }
}
