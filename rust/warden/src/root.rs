//! The root file system of an arena, made from inside its new mount namespace: an overlay of the host's root, fresh tmpfs where
//! programs put what is temporary, a `/dev` of its own, a fresh `/proc`, and the arena's cgroups.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};

use crate::message::Options;
use crate::sys;

/// Fresh tmpfs, with their modes. `/dev` is one too.
const FRESH: [(&str, u32); 4] = [("/tmp", 0o1777), ("/run", 0o755), ("/var/tmp", 0o1777), ("/dev/shm", 0o1777)];
/// Character devices of every arena: name, major, minor.
const DEVICES: [(&str, u32, u32); 8] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
    ("fuse", 10, 229),
    ("net/tun", 10, 200),
];

/// What was made.
pub(crate) struct Root {
    /// Root of the overlay's upper layer.
    pub(crate) upper: OwnedFd,
    /// The arena's `/proc`.
    pub(crate) proc: OwnedFd,
    /// Path and descriptor of each fresh tmpfs.
    pub(crate) fresh: Vec<(String, OwnedFd)>,
    /// Submounts of the host that are not here, or only to be read.
    pub(crate) not_covered: Vec<String>,
}

/// Where the overlay is put together before it becomes the root; every Linux has it, and it gets a fresh tmpfs anyway.
const STAGE: &str = "/tmp";

/// Builds the root and makes it this process' own. `step` is told before each step.
pub(crate) fn make(options: &Options, step: &mut dyn FnMut(&str) -> io::Result<()>) -> io::Result<Root> {
    step("private mounts")?;
    let everything = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    // A root that is no mount point (chroot) has no propagation of its own.
    let _ = mount_change("/", everything);
    let host_mounts = host_mounts()?;
    step("writable layer")?;
    tmpfs(Path::new(STAGE), 0o700, options.size)?;
    let root = Path::new(STAGE).join("root");
    for name in ["upper", "work", "root"] {
        fs::create_dir(Path::new(STAGE).join(name))?;
    }
    fs::set_permissions(Path::new(STAGE).join("upper"), fs::Permissions::from_mode(0o755))?;
    let upper = open_dir(&Path::new(STAGE).join("upper"))?;
    step("overlay")?;
    let data = format!("lowerdir=/,upperdir={STAGE}/upper,workdir={STAGE}/work,xino=on,redirect_dir=on,index=off");
    let data = std::ffi::CString::new(data).map_err(io::Error::other)?;
    mount("overlay", &root, "overlay", MountFlags::empty(), Some(data.as_c_str()))
        .map_err(|e| named(e.into(), "mount an overlay of / (on two overlays already?)"))?;
    let mut fresh = Vec::new();
    step("devices")?;
    devices(&root, options)?;
    fresh.push(("/dev".to_owned(), open_dir(&root.join("dev"))?));
    step("temporary directories")?;
    for (path, mode) in FRESH {
        let target = below(&root, path);
        if !target.is_dir() {
            fs::create_dir_all(&target)?;
        }
        tmpfs(&target, mode, options.size)?;
        fresh.push((path.to_owned(), open_dir(&target)?));
    }
    fs::DirBuilder::new().mode(0o1777).create(below(&root, "/run/lock"))?;
    fs::set_permissions(below(&root, "/run/lock"), fs::Permissions::from_mode(0o1777))?;
    step("proc")?;
    plain("proc", &below(&root, "/proc"))?;
    let proc = open_dir(&below(&root, "/proc"))?;
    step("sys")?;
    plain("sysfs", &below(&root, "/sys"))?;
    step("cgroups")?;
    cgroups(&root, &host_mounts)?;
    step("submounts")?;
    let not_covered = submounts(&root, &host_mounts);
    step("binds")?;
    for (source, target, read_only) in &options.binds {
        bind(source, &below(&root, target), *read_only)
            .map_err(|e| named(e, &format!("bind {source} to {target} in the arena")))?;
    }
    step("pivot")?;
    rustix::process::chdir(&root)?;
    sys::pivot_here().map_err(|e| named(e, "pivot_root (is / a mount point?)"))?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(Root { upper, proc, fresh, not_covered })
}

fn named(e: io::Error, what: &str) -> io::Error {
    io::Error::new(e.kind(), format!("{what}: {e}"))
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn plain(fs_type: &str, target: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(fs_type, target, fs_type, flags, None).map_err(|e| named(e.into(), &format!("mount {fs_type}")))
}

fn tmpfs(target: &Path, mode: u32, size: u64) -> io::Result<()> {
    let size = if size == 0 { String::new() } else { format!(",size={size}") };
    let data = std::ffi::CString::new(format!("mode={mode:o}{size}")).map_err(io::Error::other)?;
    mount("tmpfs", target, "tmpfs", MountFlags::empty(), Some(data.as_c_str()))
        .map_err(|e| named(e.into(), &format!("mount tmpfs on {}", target.display())))
}

fn devices(root: &Path, options: &Options) -> io::Result<()> {
    let dev = root.join("dev");
    tmpfs(&dev, 0o755, 0)?;
    for dir in ["pts", "shm", "mqueue", "net"] {
        fs::create_dir(dev.join(dir))?;
    }
    for (name, major, minor) in DEVICES {
        node(&dev.join(name), FileType::CharacterDevice, makedev(major, minor))?;
    }
    for name in &options.devices {
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        let host = fs::metadata(Path::new("/dev").join(name)).map_err(|e| named(e, &format!("device {name}")))?;
        let class = if host.file_type().is_block_device() { FileType::BlockDevice } else { FileType::CharacterDevice };
        node(&dev.join(name), class, host.rdev())?;
    }
    let links =
        [("ptmx", "pts/ptmx"), ("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")];
    for (name, to) in links {
        symlink(to, dev.join(name))?;
    }
    let ptys = Some(c"newinstance,ptmxmode=0666,mode=0620,gid=5");
    mount("devpts", dev.join("pts"), "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, ptys)
        .map_err(|e| named(e.into(), "mount devpts"))?;
    plain("mqueue", &dev.join("mqueue"))
}

fn node(path: &Path, class: FileType, dev: u64) -> io::Result<()> {
    mknodat(CWD, path, class, Mode::from_raw_mode(0o666), dev)
        .map_err(|e| named(e.into(), &format!("make {}", path.display())))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))
}

/// A line of mountinfo (proc(5)).
struct HostMount {
    target: String,
    fs_type: String,
    options: String,
}

fn host_mounts() -> io::Result<Vec<HostMount>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let parse = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let (fs_type, options) = (right.next()?.to_owned(), right.nth(1)?.to_owned());
        Some(HostMount { target: unescape(left.split(' ').nth(4)?), fs_type, options })
    };
    Ok(text.lines().filter_map(parse).collect())
}

fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

/// The same hierarchies at the same places. In the new cgroup namespace each shows the arena's own cgroup as its root.
fn cgroups(root: &Path, host: &[HostMount]) -> io::Result<()> {
    const TOP: &str = "/sys/fs/cgroup";
    if host.iter().any(|m| m.target == TOP && m.fs_type == "tmpfs") {
        tmpfs(&below(root, TOP), 0o755, 0)?;
        for entry in fs::read_dir(TOP)?.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_symlink())) {
            symlink(fs::read_link(entry.path())?, below(root, TOP).join(entry.file_name()))?;
        }
    }
    for m in host.iter().filter(|m| m.fs_type.starts_with("cgroup") && m.target.starts_with(TOP)) {
        let target = below(root, &m.target);
        fs::create_dir_all(&target)?;
        const NOT_PASSED: [&str; 4] = ["rw", "ro", "nsdelegate", "memory_recursiveprot"];
        let mut words: Vec<&str> = m.options.split(',').filter(|w| !NOT_PASSED.contains(w)).collect();
        words.retain(|w| !w.starts_with("release_agent="));
        if words.iter().any(|w| w.starts_with("name=")) && words.len() == 1 {
            words.insert(0, "none");
        }
        let data = std::ffi::CString::new(words.join(",")).map_err(io::Error::other)?;
        let data = (m.fs_type == "cgroup").then_some(data.as_c_str());
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("cgroup", &target, m.fs_type.as_str(), flags, data)
            .map_err(|e| named(e.into(), &format!("mount {} on {}", m.fs_type, m.target)))?;
    }
    Ok(())
}

/// What the overlay of `/` does not show. A directory is bound so that it can be read; what cannot be bound is told.
fn submounts(root: &Path, host: &[HostMount]) -> Vec<String> {
    const OURS: [&str; 7] = ["/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp", "/var/run"];
    let mut not_covered = Vec::new();
    for m in host.iter().filter(|m| m.target != "/") {
        if OURS.iter().any(|ours| Path::new(&m.target).starts_with(ours)) {
            continue;
        }
        if let Err(e) = bind(&m.target, &below(root, &m.target), true) {
            not_covered.push(format!("{}: {e}", m.target));
        }
    }
    not_covered
}

fn bind(source: &str, target: &Path, read_only: bool) -> io::Result<()> {
    if !target.exists() {
        if Path::new(source).is_dir() {
            fs::create_dir_all(target)?;
        } else {
            fs::write(target, "")?;
        }
    }
    if !read_only {
        return Ok(mount_bind_recursive(source, target)?);
    }
    mount_bind(source, target)?;
    // Flags that the mount has already must be named again (mount(2), EPERM).
    let kept = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount_remount(target, kept, "")?)
}
