//! The root file system of a box, built from inside its new mount namespace: one tmpfs, the host's programs read-only, a
//! fresh `/proc`.
//!
//! The process first opens what it needs of the host, then enters the new root, and only there creates files by path: no
//! symbolic link inside leads back to the host. The host sees none of the mounts.

use std::ffi::CString;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change, move_mount,
    open_tree, unmount,
};
use rustix::process::{chdir, pivot_root};

use crate::archive;
use crate::directory::list;
use crate::error::{Doing, Result};

/// The payload's own directory.
pub(crate) const WORK: &str = "/box";

/// Paths of the host, read-only inside. Symbolic links among them stay links, such as `/bin` with a merged `/usr`.
const SHOWN: [&str; 7] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];
/// Files of the host's `/etc` that the dynamic linker, compilers and runtimes read.
const ETC: [&str; 4] = ["ld.so.cache", "ld.so.conf.d", "alternatives", "localtime"];
const DEVICES: [(&str, u32, u32); 5] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9)];
const INODES: u32 = 65_536;

/// The parts of the root.
#[derive(Clone)]
pub(crate) struct Layout {
    /// The directory of the host on which the new root is mounted at first: any that exists.
    pub(crate) stage: PathBuf,
    /// More directories of the host, at the same path.
    pub(crate) binds: Vec<PathBuf>,
    /// How many bytes can be written to the box in total.
    pub(crate) size: u64,
    /// Owner of the payload's directories; `None` if there is only one user.
    pub(crate) user: Option<u32>,
    pub(crate) user_namespace: bool,
    /// The source file: its name and content.
    pub(crate) source: Option<(&'static str, Vec<u8>)>,
}

/// Part of the host's file systems, cloned and not attached yet (open_tree(2)).
struct Tree {
    fd: OwnedFd,
    is_dir: bool,
    target: PathBuf,
}

impl Tree {
    fn of(path: &Path) -> Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let is_dir = fs::metadata(path).doing("bind", path)?.is_dir();
        Ok(Tree { fd: open_tree(CWD, path, flags).doing("bind", path)?, is_dir, target: path.to_owned() })
    }

    fn read_only(self) -> Result<Self> {
        let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
        leakcheck_sys::set_mount_attributes(self.fd.as_fd(), attributes, true).doing("make read-only", &self.target)?;
        Ok(self)
    }

    fn attach(&self) -> Result<()> {
        let attach = || -> std::io::Result<()> {
            if self.is_dir {
                fs::create_dir_all(&self.target)?;
            } else if !self.target.exists() {
                fs::write(&self.target, "")?;
            }
            Ok(move_mount(&self.fd, "", CWD, &self.target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
        };
        attach().doing("bind in the box to", &self.target)
    }
}

/// Builds the root and makes it the root of this process.
pub(crate) fn make(layout: &Layout) -> Result<()> {
    // A root that is not a mount point (chroot) has no propagation of its own.
    let _ = mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC);
    let (links, trees) = host(layout)?;
    let stage = layout.stage.as_path();
    // Device nodes are in it, so no NODEV.
    let options = format!("mode=0755,size={},nr_inodes={INODES}", layout.size);
    let options = CString::new(options)?;
    mount("refbox", stage, "tmpfs", MountFlags::NOSUID, Some(options.as_c_str())).during("mount tmpfs")?;
    chdir(stage).doing("enter", stage)?;
    pivot_root(".", ".").during("pivot_root")?;
    // The old root is still there for this: a user namespace may mount a procfs only while it sees another one.
    fs::create_dir("/proc").doing("make", "/proc")?;
    // The command line of process 1 is the host's, which the payload must not see.
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, Some(c"hidepid=2")).during("mount proc")?;
    unmount(".", UnmountFlags::DETACH).during("leave the old root")?;
    chdir("/").during("enter the root")?;
    fill(layout, &links)?;
    trees.iter().try_for_each(Tree::attach)
}

/// A symbolic link: its path and its target.
type Link = (PathBuf, PathBuf);

/// Opens what the root needs of the host.
fn host(layout: &Layout) -> Result<(Vec<Link>, Vec<Tree>)> {
    let (mut links, mut trees) = (Vec::new(), Vec::new());
    let mut shown: Vec<PathBuf> = SHOWN.iter().map(PathBuf::from).collect();
    shown.extend(ETC.iter().map(|name| Path::new("/etc").join(name)));
    // Debian's Java reads its configuration there.
    let etc = list(Path::new("/etc")).into_iter().flatten().map(|(name, _)| name);
    let java = etc.filter(|name| name.to_string_lossy().starts_with("java"));
    shown.extend(java.map(|name| Path::new("/etc").join(name)));
    for path in shown {
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_symlink() => {
                let target = fs::read_link(&path).doing("read link", &path)?;
                links.push((path, target));
            }
            Ok(_) => trees.push(Tree::of(&path)?.read_only()?),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e).doing("look at", &path),
        }
    }
    for path in &layout.binds {
        trees.push(Tree::of(path)?.read_only()?);
    }
    if layout.user_namespace {
        // A user namespace cannot create devices.
        for (name, ..) in DEVICES {
            trees.push(Tree::of(&Path::new("/dev").join(name))?);
        }
    }
    Ok((links, trees))
}

fn fill(layout: &Layout, links: &[Link]) -> Result<()> {
    for (dir, mode, of_payload) in [
        ("/etc", 0o755, false),
        ("/dev", 0o755, false),
        ("/dev/shm", 0o1777, false),
        ("/tmp", 0o1777, false),
        (WORK, 0o755, true),
    ] {
        fs::create_dir(dir).doing("make in the box", dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(mode)).doing("make in the box", dir)?;
        if of_payload {
            chown(dir, layout.user, layout.user).doing("make in the box", dir)?;
        }
    }
    let fixed =
        [("/proc/self/fd", "/dev/fd"), ("fd/0", "/dev/stdin"), ("fd/1", "/dev/stdout"), ("fd/2", "/dev/stderr")];
    let fixed = fixed.map(|(target, path)| (PathBuf::from(path), PathBuf::from(target)));
    for (path, target) in links.iter().chain(&fixed) {
        symlink(target, path).doing("make in the box link", path)?;
    }
    for (name, major, minor) in DEVICES.iter().filter(|_| !layout.user_namespace) {
        let path = Path::new("/dev").join(name);
        let mode = Mode::from_raw_mode(0o666);
        mknodat(CWD, &path, FileType::CharacterDevice, mode, makedev(*major, *minor))
            .doing("make in the box", &path)?;
    }
    let user = layout.user.unwrap_or(crate::user::ONLY_USER);
    let passwd = format!("root:x:0:0::/:/bin/sh\nbox:x:{user}:{user}::{WORK}:/bin/sh\n");
    for (name, text) in [("passwd", passwd), ("group", format!("root:x:0:\nbox:x:{user}:\n"))] {
        archive::put(Path::new("/etc"), name, 0o644, None, &mut text.as_bytes())?;
    }
    match &layout.source {
        Some((name, content)) => archive::put(Path::new(WORK), name, 0o644, layout.user, &mut content.as_slice()),
        None => Ok(()),
    }
}
