//! The mounts, and how the file system of each behaves.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use super::proc_root::{self, read_file};
use super::read::read_all;
use super::sys;
use crate::arena::{ArenaView, proc_path};
use crate::error::{Error, Result};
use crate::parse::{fdinfo, mountinfo};
use crate::resource::encode_device;
use crate::text::Text;

/// The text of a mountinfo, and what it tells of each mount.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) text: Vec<u8>,
    known: OnceLock<Arc<HashMap<u64, Known>>>,
}

impl Table {
    fn known(&self) -> Arc<HashMap<u64, Known>> {
        Arc::clone(self.known.get_or_init(|| Arc::new(known(&self.text).collect())))
    }
}

/// The mountinfo of an arena's PID 1, which one look reads once: mounts that come meanwhile are new to all of its parts.
/// Each look reads it, and parses it only if it says something else than before.
#[derive(Default)]
pub(super) struct InitTable(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    table: Option<Arc<Table>>,
    /// Whether this look has read it.
    is_read: bool,
}

impl InitTable {
    pub(super) fn get(&self, arena: &ArenaView) -> Result<Arc<Table>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = kept.table.as_ref().filter(|_| kept.is_read) {
            return Ok(Arc::clone(table));
        }
        let text = read_file(proc_path(Some(arena), "1/mountinfo"))?;
        let same = kept.table.take().filter(|table| table.text == text);
        let table = same.unwrap_or_else(|| Arc::new(Table { text, known: OnceLock::new() }));
        *kept = Kept { table: Some(Arc::clone(&table)), is_read: true };
        Ok(table)
    }

    /// For the next look.
    pub(super) fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_read = false;
    }
}

/// How a file system behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nature {
    /// The kernel answers at once, and it contains files.
    Local,
    /// The kernel answers at once, and it contains kernel objects, which other kinds cover.
    Kernel,
    /// Another process or machine answers, or nothing does.
    Remote,
    /// Not known to this program.
    Other,
}

const LOCAL: [&str; 34] = [
    "aufs",
    "bcachefs",
    "btrfs",
    "cramfs",
    "devtmpfs",
    "erofs",
    "exfat",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "hfs",
    "hfsplus",
    "hugetlbfs",
    "iso9660",
    "jffs2",
    "jfs",
    "minix",
    "msdos",
    "nilfs2",
    "ntfs3",
    "overlay",
    "ramfs",
    "reiserfs",
    "romfs",
    "rootfs",
    "squashfs",
    "tmpfs",
    "ubifs",
    "udf",
    "ufs",
    "vfat",
    "xfs",
    "zfs",
];
const KERNEL: [&str; 23] = [
    "binder",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "cpuset",
    "debugfs",
    "devpts",
    "efivarfs",
    "fusectl",
    "mqueue",
    "nfsd",
    "nsfs",
    "proc",
    "pstore",
    "resctrl",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "smackfs",
    "sysfs",
    "tracefs",
];
impl Nature {
    pub(super) fn of(fs_type: &[u8]) -> Self {
        let Ok(name) = std::str::from_utf8(fs_type) else { return Nature::Other };
        if mountinfo::is_served(fs_type) {
            Nature::Remote
        } else if LOCAL.contains(&name) {
            Nature::Local
        } else if KERNEL.contains(&name) {
            Nature::Kernel
        } else {
            Nature::Other
        }
    }
}

/// What a walk needs to know about a mount.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) nature: Nature,
    pub(crate) dev: u64,
    pub(crate) fs_type: Text,
    pub(crate) target: Text,
}

/// The mounts of a namespace by mountinfo's number. Numbers are reused, so read them again for each look.
#[derive(Debug)]
pub(crate) struct Mounts {
    table: PathBuf,
    /// What this look read of it already.
    read: Option<Arc<Table>>,
    known: Arc<HashMap<u64, Known>>,
    /// The mounts that a path may enter: those from before the run, by [`number`]. A mount of the run may hang, even if
    /// its type does not show it: an overlay of a FUSE file system, or a disk whose image is on one.
    old: Option<Arc<HashSet<u64>>>,
}

impl Mounts {
    /// Those of the calling process, or of the first process of the arena.
    pub(crate) fn of(arena: Option<&ArenaView>) -> Self {
        let table =
            if arena.is_some() { proc_path(arena, "1/mountinfo") } else { "/proc/thread-self/mountinfo".into() };
        Mounts { table, read: None, known: Arc::default(), old: None }
    }

    /// With what the look has read of the table already.
    pub(super) fn with(self, read: Option<Arc<Table>>) -> Self {
        Mounts { read, ..self }
    }

    /// From now on, lets a path enter only these.
    pub(crate) fn limit_to(&mut self, old: Arc<HashSet<u64>>) {
        self.old = Some(old);
    }

    /// Forgets what was read.
    pub(crate) fn forget(&mut self) {
        self.known = Arc::default();
    }

    /// The mount that a descriptor is on; none if it is in none of the namespaces that were read. Does not access any
    /// file system.
    pub(crate) fn of_fd(&mut self, fd: BorrowedFd<'_>) -> Option<Known> {
        let path = format!("/proc/thread-self/fdinfo/{}", fd.as_raw_fd());
        let info = proc_root::open(Path::new(&path), OFlags::RDONLY).ok()?;
        // The number is in one of the first lines, whatever follows.
        let mut text = [0; 1024];
        let length = rustix::io::read(&info, &mut text).ok()?;
        let id = u64::from(fdinfo::parse(&text[..length]).mnt_id?);
        if !self.known.contains_key(&id) {
            self.add_read();
        }
        if !self.known.contains_key(&id) {
            let text = read_file(&self.table).ok()?;
            self.add(&text);
        }
        self.known.get(&id).cloned()
    }

    /// Those that were read and for which `f` holds, by path.
    pub(super) fn those(&self, f: impl Fn(&Known) -> bool) -> Vec<Known> {
        let mut those: Vec<Known> = self.known.values().filter(|known| f(known)).cloned().collect();
        those.sort_by(|a, b| a.target.cmp(&b.target));
        those
    }

    /// Adds those of the table that the look has read already.
    pub(super) fn add_read(&mut self) {
        match self.read.take() {
            None => {}
            Some(table) if self.known.is_empty() => self.known = table.known(),
            Some(table) => self.add(&table.text),
        }
    }

    /// Whether neither the mount existed before the run nor its file system in another mount that still exists: a bind
    /// mount of that one responds as it does.
    pub(super) fn is_new(&self, fd: BorrowedFd<'_>, dev: u64) -> bool {
        let Some(old) = &self.old else { return false };
        if old.contains(&number(fd)) {
            return false;
        }
        let ns = self.table.parent().and_then(|p| std::fs::File::open(p.join("ns/mnt")).ok());
        let ns = ns.and_then(|ns| sys::mount_ns_id(ns.as_fd())).unwrap_or(0);
        let shows = |id: &u64| {
            let device = sys::MountStat::of(*id, ns).map(|m| m.device());
            device.is_ok_and(|(major, minor)| encode_device(major, minor) == dev)
        };
        let by_table = || self.known.iter().any(|(id, known)| old.contains(id) && known.dev == dev);
        !old.iter().any(shows) && !by_table()
    }

    /// Adds the mounts of the process whose directory in `/proc` is `dir` or a parent of it.
    pub(super) fn add_of_process(&mut self, dir: BorrowedFd<'_>) {
        for name in [c"mountinfo", c"../mountinfo", c"../../../mountinfo"] {
            let opened = rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            if let Ok(text) = opened.and_then(|file| read_all(file.as_fd())) {
                return self.add(&text);
            }
        }
    }

    /// Adds those of a mountinfo.
    pub(super) fn add(&mut self, text: &[u8]) {
        Arc::make_mut(&mut self.known).extend(known(text));
    }
}

/// The mounts of a mountinfo, by its numbers.
fn known(text: &[u8]) -> impl Iterator<Item = (u64, Known)> {
    mountinfo::parse(text).unwrap_or_default().into_iter().map(|mount| {
        let known = Known {
            nature: Nature::of(&mount.fs_type),
            dev: encode_device(mount.major, mount.minor),
            fs_type: Text::from(&*mount.fs_type),
            target: Text::from(&*mount.mount_point),
        };
        (mount.id.into(), known)
    })
}

/// The number of the mount that a descriptor is on: the unique one if the kernel has it (Linux 6.8), else mountinfo's,
/// which is reused; 0 if the kernel reports none.
pub(super) fn number(fd: BorrowedFd<'_>) -> u64 {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    let mask = StatxFlags::from_bits_retain(sys::STATX_MNT_ID_UNIQUE);
    rustix::fs::statx(fd, c"", flags, mask).ok().and_then(|st| sys::mount_of(&st)).unwrap_or(0)
}

/// The numbers of all mounts here that the kernel never gives again; none before Linux 6.8.
pub(crate) fn lasting_numbers() -> Option<HashSet<u64>> {
    sys::listmount(0).ok().map(|ids| ids.into_iter().collect())
}

/// The numbers of all mounts here, or in the arena.
///
/// # Errors
/// If neither the kernel nor mountinfo lists them.
pub(crate) fn numbers(arena: Option<&ArenaView>) -> Result<HashSet<u64>> {
    let listed = match arena {
        None => sys::listmount(0),
        Some(_) => std::fs::File::open(proc_path(arena, "1/ns/mnt")).and_then(|namespace| {
            let id = sys::mount_ns_id(namespace.as_fd()).ok_or_else(std::io::Error::last_os_error)?;
            sys::listmount(id)
        }),
    };
    if let Ok(ids) = listed {
        return Ok(ids.into_iter().collect());
    }
    let table = Mounts::of(arena).table;
    let text = read_file(&table)?;
    let mounts = mountinfo::parse(&text).map_err(|e| Error::usage(format!("{}: {e}", table.display())))?;
    Ok(mounts.iter().map(|m| u64::from(m.id)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_with_a_server_are_recognised_by_their_type() {
        for fs_type in ["fuse", "fuse.sshfs", "nfs4", "9p", "autofs"] {
            assert_eq!(Nature::of(fs_type.as_bytes()), Nature::Remote, "{fs_type}");
        }
        assert_eq!(Nature::of(b"tmpfs"), Nature::Local);
        assert_eq!(Nature::of(b"fusectl"), Nature::Kernel);
        assert_eq!(Nature::of(b"wonderfs"), Nature::Other);
        let all = LOCAL.iter().chain(&KERNEL);
        let distinct: std::collections::HashSet<_> = all.clone().collect();
        assert_eq!(distinct.len(), all.count(), "each type has one nature");
    }

    #[test]
    fn every_mount_here_is_found_by_a_descriptor_on_it() {
        let mut mounts = Mounts::of(None);
        for path in ["/", "/proc"] {
            let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
            assert!(mounts.of_fd(fd.as_fd()).is_some(), "{path}");
        }
        let pipe = rustix::pipe::pipe().unwrap().0;
        assert!(mounts.of_fd(pipe.as_fd()).is_none(), "no namespace lists the kernel's own mounts");
    }
}
