//! `/proc/PID/cgroup` and `/proc/cgroups` (cgroups(7)), and the flat keyed files of cgroup v2.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::error::{At, Result};
use super::mountinfo::Mount;
use super::{scan, split_deleted};

/// A process's place in one hierarchy: a line of `/proc/PID/cgroup`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CgroupEntry<'a> {
    /// 0 for cgroup v2.
    pub hierarchy: u32,
    /// Comma separated: controllers of a v1 hierarchy, `name=…` for a named one, empty for v2.
    pub controllers: &'a [u8],
    /// From the reader's cgroup namespace root (`/..` leads out of it), without the ` (deleted)` that `deleted`
    /// stands for. May hold colons, never a newline.
    pub path: &'a [u8],
    /// The text ended in ` (deleted)`: *maybe* removed, as with a zombie's. A living cgroup may be named so; whether
    /// the printed directory exists decides.
    pub deleted: bool,
}

impl CgroupEntry<'_> {
    /// Whether this is the cgroup v2 hierarchy.
    #[must_use]
    pub fn is_v2(&self) -> bool {
        self.hierarchy == 0 && self.controllers.is_empty()
    }

    /// Whether the hierarchy has this controller, or this whole `name=…`.
    #[must_use]
    pub fn has_controller(&self, name: &[u8]) -> bool {
        self.controllers.split(|byte| *byte == b',').any(|controller| controller == name)
    }
}

/// Where the entry's cgroup can be found: its directory in each mount of its hierarchy that shows it.
///
/// A mount shows the hierarchy from its own root on, which a cgroup outside of it (a container's, or one that is printed with `..`) has
/// no place below.
pub fn directories<'a>(
    entry: &CgroupEntry<'a>,
    mounts: &'a [Mount<'a>],
) -> impl DoubleEndedIterator<Item = PathBuf> + use<'a> {
    let (entry, path) = (*entry, Path::new(OsStr::from_bytes(entry.path)));
    mounts.iter().filter(move |mount| mount.is_hierarchy_of(&entry)).filter_map(move |mount| {
        let below = path.strip_prefix(OsStr::from_bytes(&mount.root)).ok()?;
        let inside = !below.components().any(|part| part == Component::ParentDir);
        // Joined with nothing, a path would end in a slash.
        inside.then(|| if below.as_os_str().is_empty() { mount.point().to_owned() } else { mount.point().join(below) })
    })
}

/// Reads the whole of `/proc/PID/cgroup`.
///
/// # Errors
/// If a line has no number, controllers or absolute path, or the last one was cut.
pub fn parse(input: &[u8]) -> Result<Vec<CgroupEntry<'_>>> {
    scan::lines("cgroup", input)?.map(parse_line).collect()
}

fn parse_line(at: At<'_>) -> Result<CgroupEntry<'_>> {
    let (hierarchy, rest) = at.need("hierarchy", scan::split_once(at.line, b':'))?;
    let hierarchy = at.need("hierarchy", scan::unsigned(hierarchy))?;
    // `name=` values may hold no colon (kernel/cgroup/cgroup-v1.c), so the second one ends the controllers.
    let (controllers, printed) = at.need("controllers", scan::split_once(rest, b':'))?;
    if !printed.starts_with(b"/") {
        return Err(at.error("path"));
    }
    let (path, deleted) = split_deleted(printed);
    Ok(CgroupEntry { hierarchy, controllers, path, deleted })
}

/// A controller that the kernel was built with: a line of `/proc/cgroups`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Controller<'a> {
    /// `memory`, `pids` …
    pub name: &'a [u8],
    /// 0 if it is on v2 or not mounted.
    pub hierarchy: u32,
    /// Cgroups in that hierarchy, dying ones included: a leak gauge on v1.
    pub num_cgroups: u32,
    /// False after `cgroup_disable=` on the kernel command line.
    pub enabled: bool,
}

/// Reads the whole of `/proc/cgroups`.
///
/// # Errors
/// If a line has not the four columns of cgroups(7), or the last one was cut.
pub fn parse_controllers(input: &[u8]) -> Result<Vec<Controller<'_>>> {
    scan::lines("cgroups", input)?.filter(|at| !at.line.starts_with(b"#")).map(parse_controller).collect()
}

fn parse_controller(at: At<'_>) -> Result<Controller<'_>> {
    let (name, counts) = at.need("subsys_name", scan::split_once(at.line, b'\t'))?;
    let [hierarchy, num_cgroups, enabled] = at.need("hierarchy, num_cgroups, enabled", scan::numbers(counts))?;
    Ok(Controller { name, hierarchy, num_cgroups, enabled: enabled != 0 })
}

/// Reads a flat keyed file, such as `cgroup.events` or `cgroup.stat`, into its keys and values (the kernel's
/// `Documentation/admin-guide/cgroup-v2.rst`, *Format*).
///
/// # Errors
/// If a line is not a key, one space and a number, or the last one was cut.
pub fn parse_keyed(input: &[u8]) -> Result<Vec<(&[u8], u64)>> {
    scan::lines("flat keyed file", input)?.map(parse_pair).collect()
}

/// The value of one key of a flat keyed file, without allocating; `None` if it has no such key.
///
/// # Errors
/// As [`parse_keyed`], for the lines up to the key's.
pub fn keyed_value(input: &[u8], key: &[u8]) -> Result<Option<u64>> {
    for at in scan::lines("flat keyed file", input)? {
        let (found, value) = parse_pair(at)?;
        if found == key {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

fn parse_pair(at: At<'_>) -> Result<(&[u8], u64)> {
    let (key, value) = at.need("key", scan::split_once(at.line, b' '))?;
    Ok((key, at.need("value", scan::unsigned(value))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &[u8] = b"9:name=systemd:/\n8:pids:/\n4:memory:/sandbox/af84\n2:cpu,cpuacct:/\n0::/a:b/c (deleted)\n";
    const CONTROLLERS: &[u8] =
        b"#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t3\t1\t1\nmemory\t4\t15\t1\nhugetlb\t0\t1\t0\n";

    #[test]
    fn reads_v1_named_and_v2_hierarchies() {
        let entries = parse(HYBRID).unwrap();
        assert_eq!((entries[0].hierarchy, entries[0].controllers), (9, b"name=systemd".as_slice()));
        assert_eq!(entries[2].path, b"/sandbox/af84");
        assert!(entries[3].has_controller(b"cpuacct") && !entries[3].has_controller(b"cpu,cpuacct"));
        assert!(entries[4].is_v2() && !entries[3].is_v2());
    }

    #[test]
    fn a_path_keeps_its_colons_and_gives_up_its_suffix() {
        let entry = parse(HYBRID).unwrap()[4];
        assert_eq!((entry.path, entry.deleted), (b"/a:b/c".as_slice(), true));
    }

    #[test]
    fn reads_the_controllers() {
        let controllers = parse_controllers(CONTROLLERS).unwrap();
        let memory = Controller { name: b"memory", hierarchy: 4, num_cgroups: 15, enabled: true };
        assert_eq!(controllers[1], memory);
        assert!(!controllers[2].enabled);
    }

    #[test]
    fn reads_flat_keyed_files() {
        assert_eq!(
            parse_keyed(b"populated 1\nfrozen 0\n").unwrap(),
            [(b"populated".as_slice(), 1), (b"frozen".as_slice(), 0)]
        );
        let stat = b"nr_descendants 3\nnr_dying_descendants 12\n";
        assert_eq!(keyed_value(stat, b"nr_dying_descendants").unwrap(), Some(12));
        assert_eq!(keyed_value(stat, b"nr_dying").unwrap(), None);
    }

    #[test]
    fn an_error_names_the_field() {
        for (line, field) in [
            (&b"\n"[..], "hierarchy"),
            (b"x::/\n", "hierarchy"),
            (b"0:/\n", "controllers"),
            (b"0::\n", "path"),
            (b"0::a\n", "path"),
            (b"0::/a", "end of line"),
        ] {
            assert_eq!(parse(line).unwrap_err().field(), field);
        }
        assert_eq!(parse_controllers(b"cpu 1 1 1\n").unwrap_err().field(), "subsys_name");
        assert_eq!(parse_controllers(b"cpu\t1\t1\n").unwrap_err().field(), "hierarchy, num_cgroups, enabled");
        assert_eq!(parse_controllers(b"cpu\t1\t1\t1\t1\n").unwrap_err().field(), "hierarchy, num_cgroups, enabled");
        assert_eq!(parse_keyed(b"populated\n").unwrap_err().field(), "key");
        assert_eq!(keyed_value(b"a max\n", b"b").unwrap_err().field(), "value");
    }

    fn found(cgroup: &str, mounts: &str) -> Vec<Option<PathBuf>> {
        let mounts = crate::mountinfo::parse(mounts.as_bytes()).unwrap();
        parse(cgroup.as_bytes()).unwrap().iter().map(|entry| directories(entry, &mounts).next()).collect()
    }

    #[test]
    fn the_directory_of_a_cgroup_is_found_in_every_hierarchy_of_a_hybrid_host() {
        let cgroup = "4:memory:/a/b\n2:cpu,cpuacct:/\n1:name=systemd:/x\n0::/c\n";
        let mounts = "37 31 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      38 31 0:34 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      41 31 0:38 / /sys/fs/cgroup/with\\040blank rw - cgroup2 cgroup2 rw\n";
        let expected = [
            Some("/sys/fs/cgroup/memory/a/b".into()),
            Some("/sys/fs/cgroup/cpu,cpuacct".into()),
            None,
            Some("/sys/fs/cgroup/with blank/c".into()),
        ];
        assert_eq!(found(cgroup, mounts), expected);
    }

    #[test]
    fn a_mount_that_does_not_show_the_cgroup_has_no_directory_of_it() {
        let mounts = "41 31 0:38 /box /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(found("0::/box/inner\n", mounts), [Some("/sys/fs/cgroup/inner".into())]);
        assert_eq!(found("0::/boxes\n", mounts), [None]);
        assert_eq!(found("0::/../other\n", "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"), [None]);
    }
}
