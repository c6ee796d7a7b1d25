//! The initial contents of an arena besides the overlay of the host's files: its `/dev` and other fresh file systems,
//! its mounts, and the settings of its own cgroups. Changes and removals there are found like changes of the overlay;
//! the walk finds additions.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::ffi::{CStr, CString};
use std::hash::{Hash, Hasher};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags, Statx};
use rustix::io::Errno;

use super::overlay::{is_given, xattr_names};
use super::walk::{EMPTY, MOUNT_ROOT, PROTECTED, Walk, attributes, is_tmpfs, names, open_dir, record, stat};
use crate::parse::mountinfo;
use crate::resource::{File, FileState, encode_device};
use crate::text::Text;

/// A fresh file system has a few dozen entries at first.
const MOST: usize = 4096;
/// Settings of an arena's own cgroup that limit or stop what runs in it, and which root inside may write to: controller
/// of a v1 hierarchy, or `v2` (cgroups(7), and `cgroup-v1` and `cgroup-v2` of the kernel's documentation). Each costs a
/// few µs per look.
const SETTINGS: [(&str, &[&str]); 8] = [
    ("cpu", &["cpu.shares", "cpu.cfs_quota_us"]),
    ("cpuset", &["cpuset.cpus", "cpuset.mems"]),
    ("memory", &["memory.limit_in_bytes"]),
    ("devices", &["devices.list"]),
    ("freezer", &["freezer.self_freezing"]),
    ("pids", &["pids.max"]),
    ("blkio", &["blkio.weight", "blkio.bfq.weight"]),
    ("v2", &V2),
];
const V2: [&str; 13] = [
    "cgroup.freeze",
    "cgroup.max.depth",
    "cgroup.max.descendants",
    "cgroup.subtree_control",
    "cpu.max",
    "cpu.weight",
    "cpuset.cpus",
    "cpuset.mems",
    "io.max",
    "memory.high",
    "memory.max",
    "memory.swap.max",
    "pids.max",
];

/// The initial contents.
#[derive(Default)]
pub(crate) struct Born {
    files: Vec<BornFile>,
    /// The number by path.
    places: HashMap<Vec<u8>, usize>,
    settings: Vec<Setting>,
    mounts: Vec<BornMount>,
    /// The mountinfo that they are from.
    table: Vec<u8>,
}

/// A mount of PID 1's namespace, with its changeable attributes: target, options, propagation.
struct BornMount {
    id: u64,
    path: Vec<u8>,
    dev: u64,
    state: Vec<u8>,
}

struct BornFile {
    /// The number of the file system.
    root: usize,
    /// Path below its root; empty for the root itself.
    below: CString,
    path: Vec<u8>,
    st: Statx,
}

struct Setting {
    /// The host's, open: each look reads it.
    file: OwnedFd,
    /// The path inside.
    path: Vec<u8>,
    value: Vec<u8>,
}

impl Born {
    /// The current contents of fresh file systems and of cgroups (with the path where their hierarchy is mounted
    /// inside).
    pub(crate) fn now(
        roots: &[(PathBuf, OwnedFd)],
        cgroups: &[(String, PathBuf, PathBuf)],
        (mounts, table): (&[mountinfo::Mount<'_>], &[u8]),
    ) -> Self {
        let mounts = mounts.iter().map(BornMount::of).collect();
        let mut born = Born { mounts, table: table.to_vec(), ..Born::default() };
        for (number, (path, root)) in roots.iter().enumerate() {
            born.note((number, root, is_tmpfs(root)), b"", path.as_os_str().as_encoded_bytes());
        }
        for (hierarchy, dir, inside) in cgroups {
            let of = |c: &str| hierarchy.split(',').any(|name| name == c);
            for name in SETTINGS.iter().filter(|(c, _)| of(c)).flat_map(|(_, names)| *names) {
                let path = inside.join(name).into_os_string().into_encoded_bytes();
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let Ok(file) = rustix::fs::open(dir.join(name), flags, Mode::empty()) else { continue };
                if let Some(value) = read(&file) {
                    born.settings.push(Setting { file, path, value });
                }
            }
        }
        born
    }

    /// Records the contents of one of the file systems, a tmpfs or another.
    fn note(&mut self, fs: (usize, &OwnedFd, bool), below: &[u8], path: &[u8]) {
        let (root, top, tmpfs) = fs;
        let Ok(below) = CString::new(below) else { return };
        let Ok(st) = stat(top, &below) else { return };
        // A mount there is a separate file system; the descriptor's own root is always one.
        if !below.is_empty() && st.stx_attributes.bits() & MOUNT_ROOT != 0 || self.files.len() >= MOST {
            return;
        }
        let is_dir = FileType::from_raw_mode(u32::from(st.stx_mode)) == FileType::Directory;
        let name = if below.is_empty() { c"." } else { &below };
        let listed = if is_dir && !(tmpfs && st.stx_size == EMPTY) {
            open_dir(top, name).and_then(|dir| names(&dir))
        } else {
            Ok(Vec::new())
        };
        let join = |to: &[u8], name: &CStr| match to {
            b"" => name.to_bytes().to_vec(),
            b"/" => [b"/", name.to_bytes()].concat(),
            to => [to, b"/", name.to_bytes()].concat(),
        };
        let subs: Vec<_> =
            listed.unwrap_or_default().iter().map(|name| (join(below.to_bytes(), name), join(path, name))).collect();
        // What a mount covers comes last, and has the path of the mount.
        self.places.entry(path.to_vec()).or_insert(self.files.len());
        self.files.push(BornFile { root, below, path: path.to_vec(), st });
        for (below, path) in subs {
            self.note(fs, &below, &path);
        }
    }

    /// Adds the mounts that moved, changed or disappeared. `/proc/1/mountinfo` is read for each look: a change of
    /// propagation sends no event. An equal table tells of no difference.
    ///
    /// # Errors
    /// If the table is malformed.
    pub(crate) fn compare_mounts(&self, table: &[u8], out: &mut Walk) -> crate::parse::Result<()> {
        if table == self.table {
            return Ok(());
        }
        let now = mountinfo::parse(table)?;
        let now: HashMap<u64, BornMount> = now.iter().map(|m| (u64::from(m.id), BornMount::of(m))).collect();
        for mount in &self.mounts {
            match now.get(&mount.id) {
                None => out.files.push(mount.report(FileState::Deleted, b"")),
                Some(same) if same.state != mount.state => {
                    out.files.push(mount.report(FileState::Changed, &same.state));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// The number of what was at this path.
    pub(super) fn place(&self, path: &[u8]) -> Option<usize> {
        self.places.get(path).copied()
    }

    /// Adds what was replaced or removed.
    pub(crate) fn compare(&self, roots: &[(PathBuf, OwnedFd)], out: &mut Walk) {
        for (number, file) in self.files.iter().enumerate() {
            let Some((_, root)) = roots.get(file.root) else { continue };
            // Usually the walk has visited it.
            let seen = out.born.get(&number).filter(|st| device(st) == device(&file.st)).copied();
            let now = match seen.map_or_else(|| stat(root, &file.below), Ok) {
                // A mount made on it since then is a separate leak, and hides it.
                Ok(st) if !file.below.is_empty() && st.stx_attributes.bits() & MOUNT_ROOT != 0 => continue,
                Ok(st) if st.stx_ino == file.st.stx_ino => Some(st),
                // The walk finds a replacement as new.
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
                Err(_) => continue,
            };
            match now {
                None => file.report(&file.st, FileState::Deleted, b"", out),
                Some(st) => {
                    if let Some(change) = file.change(root, &st) {
                        file.report(&st, FileState::Changed, &change, out);
                    }
                }
            }
        }
        for setting in &self.settings {
            let Some(value) = read(&setting.file).filter(|value| *value != setting.value) else { continue };
            let Ok(st) = stat(&setting.file, c"") else { continue };
            out.files.push(changed(&st, &setting.path, FileState::Changed, &value));
        }
    }
}

impl BornMount {
    fn of(m: &mountinfo::Mount<'_>) -> Self {
        let spreads = (m.propagation.shared.is_some(), m.propagation.master.is_some(), m.propagation.unbindable);
        let state = [&*m.mount_point, b"\n", &*m.options, format!("\n{spreads:?}").as_bytes()].concat();
        BornMount { id: m.id.into(), path: m.mount_point.to_vec(), dev: encode_device(m.major, m.minor), state }
    }

    fn report(&self, state: FileState, change: &[u8]) -> File {
        File {
            dev: self.dev,
            ino: self.id,
            birth: None,
            link: 0,
            mapped_by: None,
            path: Text::from(&*self.path),
            class: "mount".to_owned(),
            mode: 0,
            uid: 0,
            size: 0,
            state: Some(state),
            version: Some(version(&self.path, change)),
        }
    }
}

impl BornFile {
    /// The differences from its initial state, as bytes that identify a second change.
    fn change(&self, root: &OwnedFd, now: &Statx) -> Option<Vec<u8>> {
        let time = |st: &Statx| (st.stx_ctime.tv_sec, st.stx_ctime.tv_nsec);
        // Every change of the inode changes this time (inode(7)); for a directory, also creating something in it.
        if time(now) == time(&self.st) {
            return None;
        }
        let flags = |st: &Statx| st.stx_attributes.bits() & PROTECTED;
        let class = FileType::from_raw_mode(u32::from(now.stx_mode));
        let size = |st: &Statx| if class == FileType::RegularFile { st.stx_size } else { 0 };
        let name = if self.below.is_empty() { c"." } else { &self.below };
        let path = [format!("/proc/self/fd/{}/", root.as_raw_fd()).as_bytes(), name.to_bytes()].concat();
        let xattrs: Vec<Vec<u8>> = xattr_names(&path, false).into_iter().filter(|name| is_given(name)).collect();
        let as_made = attributes(now) == attributes(&self.st) && flags(now) == flags(&self.st);
        if as_made && size(now) == size(&self.st) && xattrs.is_empty() {
            return None;
        }
        Some(format!("{:?} {} {} {xattrs:?}", attributes(now), flags(now), size(now)).into_bytes())
    }

    fn report(&self, st: &Statx, state: FileState, change: &[u8], out: &mut Walk) {
        out.files.push(changed(st, &self.path, state, change));
    }
}

fn device(st: &Statx) -> (u32, u32) {
    (st.stx_dev_major, st.stx_dev_minor)
}

/// Distinguishes a second change from the first.
fn version(path: &[u8], change: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (path, change).hash(&mut hasher);
    hasher.finish()
}

fn changed(st: &Statx, path: &[u8], state: FileState, change: &[u8]) -> File {
    let mut file = record(st, path, FileType::from_raw_mode(u32::from(st.stx_mode)));
    (file.birth, file.link, file.state, file.version) = (None, 0, Some(state), Some(version(path, change)));
    file
}

fn read(file: &OwnedFd) -> Option<Vec<u8>> {
    let mut buffer = [0; 4096];
    let n = rustix::io::pread(file, &mut buffer, 0).ok()?;
    Some(buffer[..n].to_vec())
}
