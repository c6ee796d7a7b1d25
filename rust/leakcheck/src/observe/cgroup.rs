//! Cgroup directories, in every hierarchy that is mounted (cgroups(7)).

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, OsStr};
use std::iter::successors;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, RawDir, StatxFlags, accessat};
use rustix::io::Errno;

use super::context::Context;
use super::proc_root::{mount_table, read_file};
use super::read::{read_all, read_small};
use super::sys;
use crate::arena::ArenaView;
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::parse::{cgroup as parse, mountinfo};
use crate::resource::Cgroup;
use crate::snapshot::{Level, Snapshot};
use crate::text::Text;

/// A mounted hierarchy.
#[derive(Clone, Debug)]
pub(crate) struct Hierarchy {
    /// `v2`, or the v1 controllers as `/proc/PID/cgroup` writes them.
    pub(crate) name: String,
    pub(crate) mount: PathBuf,
    /// Cgroup that is the root of the mount.
    pub(crate) root: String,
    /// Where something is mounted over a parent of the mount: then the path leads elsewhere, perhaps to a file system
    /// that may hang.
    pub(crate) hidden_by: Option<String>,
}

/// The mounted hierarchies, each with the mount that shows most of it.
pub(crate) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let text = mount_table()?;
    let mounts = mountinfo::parse(&text).map_err(|e| Error::usage(format!("/proc/self/mountinfo: {e}")))?;
    let mut found: Vec<Hierarchy> = Vec::new();
    let path = |point: &[u8]| PathBuf::from(OsStr::from_bytes(point));
    let parents: HashMap<u32, u32> = mounts.iter().map(|m| (m.id, m.parent_id)).collect();
    // A mount at a parent's path covers that parent, unless this mount is on it, directly or indirectly.
    let cover = |m: &mountinfo::Mount<'_>| {
        let below: HashSet<u32> =
            successors(Some(m.id), |id| parents.get(id).copied()).take(parents.len() + 1).collect();
        let mount = path(&m.mount_point);
        let over = |o: &&mountinfo::Mount<'_>| !below.contains(&o.id) && mount.starts_with(path(&o.mount_point));
        mounts.iter().find(over).map(|o| String::from_utf8_lossy(&o.mount_point).into_owned())
    };
    for m in &mounts {
        let name = match &*m.fs_type {
            b"cgroup2" => "v2".to_owned(),
            b"cgroup" => v1_name(&String::from_utf8_lossy(&m.super_options)),
            _ => continue,
        };
        let mount = path(&m.mount_point);
        let hidden_by = cover(m);
        let root = String::from_utf8_lossy(&m.root).into_owned();
        match found.iter_mut().find(|h| h.name == name) {
            Some(known) if (known.hidden_by.is_some(), known.root.len()) > (hidden_by.is_some(), root.len()) => {
                *known = Hierarchy { name, mount, root, hidden_by };
            }
            Some(_) => {}
            None => found.push(Hierarchy { name, mount, root, hidden_by }),
        }
    }
    Ok(found)
}

fn v1_name(options: &str) -> String {
    const OTHER: [&str; 9] =
        ["rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods", "nofavordynmods", "none"];
    let words: Vec<_> = options.split(',').filter(|w| !OTHER.contains(w) && !w.starts_with("release_agent=")).collect();
    words.join(",")
}

/// Appends every cgroup of every hierarchy.
pub(super) fn collect(context: Context<'_>, out: &mut Snapshot) {
    if let Some(arena) = context.arena {
        return below_arena(arena, out);
    }
    let all = match hierarchies() {
        Ok(all) => all,
        Err(e) => return out.coverage.lower(Kind::Cgroup, Level::None, e.to_string()),
    };
    unmounted(&all, out);
    for hierarchy in &all {
        if let Some(over) = &hierarchy.hidden_by {
            if !privately(&hierarchy.name, out) {
                let why = format!("another mount on {over} covers {}", hierarchy.mount.display());
                out.coverage.lower(Kind::Cgroup, Level::Partial, why);
            }
            continue;
        }
        walk(hierarchy, Path::new(""), out);
        if hierarchy.name == "v2" {
            dying(&hierarchy.mount, out);
        }
    }
    if all.is_empty() {
        out.coverage.lower(Kind::Cgroup, Level::None, "no cgroup hierarchy is mounted here");
    }
}

/// Appends the cgroups below the arena's own, with paths from there.
fn below_arena(arena: &ArenaView, out: &mut Snapshot) {
    for (name, dir) in &arena.cgroups {
        let links = rustix::fs::statx(rustix::fs::CWD, dir, AtFlags::empty(), StatxFlags::NLINK);
        // kernfs counts sub-directories in the link count: most arenas have none.
        if links.is_ok_and(|st| st.stx_nlink <= 2) {
            continue;
        }
        let hierarchy = Hierarchy { name: name.clone(), mount: dir.clone(), root: "/".to_owned(), hidden_by: None };
        walk(&hierarchy, Path::new(""), out);
    }
    match arena.cgroups.iter().find(|(name, _)| name == "v2") {
        Some((_, dir)) => dying(dir, out),
        None if arena.cgroups.is_empty() => without_own(out),
        None => {}
    }
}

/// An arena without a cgroup of its own: its processes have this process' user and groups, and no capability over a cgroup
/// file system. Where none of all cgroups can be written to, they make none.
fn without_own(out: &mut Snapshot) {
    let why = "the arena has no cgroup of its own";
    match may_make_any(out) {
        None => out.coverage.lower(
            Kind::Cgroup,
            Level::Full,
            format!("{why}, and its user cannot create any: no cgroup is writable"),
        ),
        Some(but) => out.coverage.lower(Kind::Cgroup, Level::None, format!("{why}, but {but}")),
    }
}

/// Why this user may make a cgroup somewhere; none if it cannot.
fn may_make_any(out: &Snapshot) -> Option<String> {
    let all = match hierarchies() {
        Ok(all) => all,
        Err(e) => return Some(e.to_string()),
    };
    let mut every = Snapshot::empty(out.scope.clone(), out.kinds);
    unmounted(&all, &mut every);
    for hierarchy in &all {
        if let Some(over) = &hierarchy.hidden_by {
            return Some(format!("another mount on {over} covers {}", hierarchy.mount.display()));
        }
        walk(hierarchy, Path::new(""), &mut every);
    }
    if let Some(gap) = every.coverage.0.get(&Kind::Cgroup).filter(|coverage| coverage.level != Level::Full) {
        return Some(gap.reason.clone());
    }
    if !every.unmounted_cgroups.is_empty() {
        return Some("some cgroups are in a hierarchy that is not mounted here".to_owned());
    }
    // A file system that is mounted read-only here may be mounted again (EROFS).
    let writable = |dir: &Path| {
        !matches!(accessat(CWD, dir, Access::WRITE_OK, AtFlags::EACCESS), Err(Errno::ACCESS | Errno::NOENT))
    };
    let owned = |dir: &Path| std::fs::metadata(dir).is_ok_and(|meta| meta.uid() == rustix::process::geteuid().as_raw());
    let below = every.cgroups.iter().map(|cgroup| cgroup.dir.as_path().to_owned());
    let mut places = all.iter().map(|hierarchy| hierarchy.mount.clone()).chain(below);
    places.find(|dir| writable(dir) || owned(dir)).map(|dir| format!("its user may write to {}", dir.display()))
}

/// Hierarchies that are not mounted here: if they cannot be mounted privately, cgroups in them are not seen.
fn unmounted(all: &[Hierarchy], out: &mut Snapshot) {
    let Ok(text) = read_file("/proc/self/cgroup") else { return };
    let Ok(entries) = parse::parse(&text) else { return };
    let hidden: Vec<String> = entries
        .iter()
        .map(|e| if e.hierarchy == 0 { "v2".to_owned() } else { String::from_utf8_lossy(e.controllers).into_owned() })
        .filter(|name| !all.iter().any(|h| same_controllers(&h.name, name)))
        .filter(|name| !privately(name, out))
        .collect();
    if !hidden.is_empty() {
        let why = format!("hierarchy {} is not mounted here", hidden.join(" and "));
        out.coverage.lower(Kind::Cgroup, Level::Partial, why);
    }
}

/// Lists the cgroups of a named hierarchy through a mount of this look only; false if that is not possible. With the name
/// alone, the kernel makes no hierarchy that does not exist. Mounting v1 controllers could make one and take them from
/// v2, and mounting v2 would reset its options (`nsdelegate`) for everybody.
fn privately(name: &str, out: &mut Snapshot) -> bool {
    let mount = name.strip_prefix("name=").map(|name| sys::detached("cgroup", &[("name", name)]));
    let Some(Ok(mount)) = mount else { return false };
    let path = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
    let hierarchy = Hierarchy { name: name.to_owned(), mount: path, root: "/".to_owned(), hidden_by: None };
    let from = out.cgroups.len();
    walk(&hierarchy, Path::new(""), out);
    // No path leads there after the look.
    let found = out.cgroups.drain(from..).map(|cgroup| Cgroup { dir: Text::from(&b""[..]), ..cgroup });
    out.unmounted_cgroups.extend(found);
    true
}

fn same_controllers(a: &str, b: &str) -> bool {
    let sorted = |s: &str| {
        let mut words: Vec<_> = s.split(',').map(str::to_owned).collect();
        words.sort();
        words
    };
    sorted(a) == sorted(b)
}

fn dying(mount: &Path, out: &mut Snapshot) {
    let Ok(text) = read_file(mount.join("cgroup.stat")) else { return };
    if let Ok(Some(n)) = parse::keyed_value(&text, b"nr_dying_descendants") {
        out.gauges.insert("dying_cgroups".to_owned(), i64::try_from(n).unwrap_or(i64::MAX));
    }
}

/// Appends `below` and its descendants; the root of a hierarchy is never a leak.
fn walk(hierarchy: &Hierarchy, below: &Path, out: &mut Snapshot) {
    let top = hierarchy.mount.join(below);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = match rustix::fs::open(&top, flags, Mode::empty()) {
        Ok(dir) => dir,
        Err(e) => return refused("open directory", &top, e, out),
    };
    let prefix = if hierarchy.root == "/" { String::new() } else { hierarchy.root.clone() };
    let path = Path::new("/").join(below);
    if below.as_os_str().is_empty() {
        return children(hierarchy, &dir, &prefix, &top, out);
    }
    let path = format!("{prefix}{}", path.display());
    match rustix::fs::statx(&dir, c"", AtFlags::EMPTY_PATH, StatxFlags::INO | StatxFlags::NLINK) {
        Ok(st) => {
            push(hierarchy, st.stx_ino, path.as_bytes(), &top, out);
            if st.stx_nlink > 2 {
                children(hierarchy, &dir, &path, &top, out);
            }
        }
        Err(e) => refused("stat", &top, e, out),
    }
}

/// A cgroup that is removed meanwhile is not a gap.
fn refused(op: &'static str, path: &Path, e: Errno, out: &mut Snapshot) {
    if !matches!(e, Errno::NOENT | Errno::NODEV) {
        out.coverage.lower(Kind::Cgroup, Level::Partial, Error::io(op, path, e).to_string());
    }
}

fn push(hierarchy: &Hierarchy, ino: u64, path: &[u8], dir: &Path, out: &mut Snapshot) {
    out.cgroups.push(Cgroup {
        hierarchy: Text::from(hierarchy.name.as_bytes()),
        ino,
        path: Text::from(path),
        dir: Text::from(dir.as_os_str().as_encoded_bytes()),
    });
}

fn children(hierarchy: &Hierarchy, dir: &OwnedFd, path: &str, full: &Path, out: &mut Snapshot) {
    let mut names: Vec<std::ffi::CString> = Vec::new();
    {
        // Not on the stack: the walk recurses.
        let mut buffer = vec![MaybeUninit::<u8>::uninit(); 8192];
        let mut entries = RawDir::new(dir, &mut buffer[..]);
        while let Some(entry) = entries.next() {
            match entry {
                Ok(entry) => {
                    let name = entry.file_name();
                    if entry.file_type() == FileType::Directory && !matches!(name.to_bytes(), b"." | b"..") {
                        names.push(name.to_owned());
                    }
                }
                Err(e) => {
                    refused("list", full, e, out);
                    break;
                }
            }
        }
    }
    for name in names {
        child(hierarchy, dir, &name, path, full, out);
    }
}

fn child(hierarchy: &Hierarchy, dir: &OwnedFd, name: &CStr, path: &str, full: &Path, out: &mut Snapshot) {
    let mask = StatxFlags::INO | StatxFlags::NLINK;
    let full = full.join(OsStr::from_bytes(name.to_bytes()));
    let st = match rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, mask) {
        Ok(st) => st,
        Err(e) => return refused("stat", &full, e, out),
    };
    let path = format!("{path}/{}", String::from_utf8_lossy(name.to_bytes()));
    push(hierarchy, st.stx_ino, path.as_bytes(), &full, out);
    // kernfs counts its subdirectories in the link count: a leaf needs no listing.
    if st.stx_nlink > 2 {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::openat(dir, name, flags, Mode::empty()) {
            Ok(sub) => children(hierarchy, &sub, &path, &full, out),
            Err(e) => refused("open directory", &full, e, out),
        }
    }
}

/// The directories of a `cgroup:` scope; none if it is gone.
pub(crate) fn directories_of(path: &Path) -> Vec<PathBuf> {
    let parts = CgroupScope::resolve(path).map_or_else(|_| Vec::new(), |scope| scope.parts);
    parts.into_iter().map(|(hierarchy, below)| hierarchy.mount.join(below)).collect()
}

/// One cgroup scope: in which hierarchies the path exists.
pub(crate) struct CgroupScope {
    parts: Vec<(Hierarchy, PathBuf)>,
}

impl CgroupScope {
    /// `path` is a directory below a cgroup mount, or a cgroup path as `/proc/PID/cgroup` writes it, which may exist in
    /// several hierarchies.
    ///
    /// # Errors
    /// [`Error::Usage`] when no hierarchy has it.
    pub(crate) fn resolve(path: &Path) -> Result<Self> {
        let all = hierarchies()?;
        let shown = || all.iter().filter(|h| h.hidden_by.is_none());
        let existing = |(h, below): (&Hierarchy, PathBuf)| {
            h.mount.join(&below).join("cgroup.procs").exists().then(|| (h.clone(), below))
        };
        let as_directory = |h: &Hierarchy| Some(path.strip_prefix(&h.mount).ok()?.to_owned());
        let mut parts: Vec<_> = shown().filter_map(|h| Some((h, as_directory(h)?))).filter_map(existing).collect();
        if parts.is_empty() {
            let below = path.strip_prefix("/").unwrap_or(path);
            let as_cgroup = |h: &Hierarchy| {
                let root = Path::new(h.root.trim_start_matches('/'));
                below.strip_prefix(root).unwrap_or(below).to_owned()
            };
            parts = shown().map(|h| (h, as_cgroup(h))).filter_map(existing).collect();
        }
        if parts.is_empty() {
            let mounts: Vec<_> = all.iter().map(|h| h.mount.display().to_string()).collect();
            return Err(Error::usage(format!(
                "scope cgroup:{}: no such cgroup: give a directory below one of {}, or the path of /proc/PID/cgroup",
                path.display(),
                if mounts.is_empty() { "no mounted hierarchy".to_owned() } else { mounts.join(", ") }
            )));
        }
        Ok(CgroupScope { parts })
    }

    /// Appends the cgroups of the scope.
    pub(crate) fn collect(&self, out: &mut Snapshot) {
        for (hierarchy, below) in &self.parts {
            walk(hierarchy, below, out);
        }
    }

    /// Whether one of these cgroups, by hierarchy and path as `/proc/PID/cgroup` has them, is in the scope.
    pub(crate) fn has(&self, cgroups: &[(String, String)]) -> bool {
        let is_in = |(name, path): &(String, String)| {
            let path = Path::new(path.strip_suffix(" (deleted)").unwrap_or(path));
            let in_part =
                |(h, below): &(Hierarchy, PathBuf)| h.name == *name && path.starts_with(Path::new(&h.root).join(below));
            self.parts.iter().any(in_part)
        };
        cgroups.iter().any(is_in)
    }

    /// The processes of the scope, by `cgroup.procs` of each of its cgroups. A zombie is in none (cgroups(7)).
    pub(crate) fn pids(&self, scratch: &mut Snapshot) -> Vec<u32> {
        let from = scratch.cgroups.len();
        self.collect(scratch);
        let mut pids = Vec::new();
        let mut gaps = Vec::new();
        let mut text = [0u8; 4096];
        for cgroup in &scratch.cgroups[from..] {
            let mut gap = |file: &str, e: Errno| {
                if !matches!(e, Errno::NOENT | Errno::NODEV) {
                    gaps.push(Error::io("read", cgroup.dir.as_path().join(file), e).to_string());
                }
            };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = match rustix::fs::open(cgroup.dir.as_path(), flags, Mode::empty()) {
                Ok(dir) => dir,
                Err(e) => {
                    gap("cgroup.procs", e);
                    continue;
                }
            };
            let whole = |name: &CStr| {
                rustix::fs::openat(&dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                    .and_then(|file| read_all(file.as_fd()))
            };
            let list = match read_small(dir.as_fd(), c"cgroup.procs", &mut text) {
                Ok(list) if list.len() < 4000 => Ok(list.to_vec()),
                // A large cgroup needs more than one buffer.
                Ok(_) => whole(c"cgroup.procs"),
                // A threaded cgroup (cgroups(7)) lists only threads.
                Err(Errno::OPNOTSUPP) => {
                    match whole(c"cgroup.threads") {
                        Ok(threads) => pids.extend(numbers(&threads).filter_map(thread_group)),
                        Err(e) => gap("cgroup.threads", e),
                    }
                    continue;
                }
                Err(e) => Err(e),
            };
            match list {
                Ok(list) => pids.extend(numbers(&list)),
                Err(e) => gap("cgroup.procs", e),
            }
        }
        for gap in gaps {
            scratch.coverage.lower(Kind::Process, Level::Partial, gap);
        }
        pids.sort_unstable();
        pids.dedup();
        pids.retain(|&p| p > 0);
        pids
    }
}

fn numbers(list: &[u8]) -> impl Iterator<Item = u32> {
    list.split(|b| *b == b'\n').filter_map(|l| std::str::from_utf8(l).ok()?.parse().ok())
}

fn thread_group(tid: u32) -> Option<u32> {
    let text = read_file(format!("/proc/{tid}/status")).ok()?;
    crate::parse::status::parse(&text).ok()?.tgid?.try_into().ok()
}
