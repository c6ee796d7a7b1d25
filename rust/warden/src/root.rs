//! The root file system of an arena, made from inside its new mount namespace: an overlay of the host's root, fresh tmpfs where
//! programs put what is temporary, a `/dev` of its own, a fresh `/proc`, and the arena's cgroups.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind,
    mount_bind_recursive, mount_change, mount_remount, move_mount, open_tree, unmount,
};

use crate::message::{Options, Steps};
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
    /// Where each overlay is, and the root of its upper layer.
    pub(crate) layers: Vec<(String, OwnedFd)>,
    /// The arena's `/proc`.
    pub(crate) proc: OwnedFd,
    /// Path and descriptor of each fresh tmpfs.
    pub(crate) fresh: Vec<(String, OwnedFd)>,
    /// What of the host is not here, or only to be read, with the reason.
    pub(crate) not_covered: Vec<String>,
}

/// Where the overlay is put together before it becomes the root; every Linux has it, and it gets a fresh tmpfs anyway.
const STAGE: &str = "/tmp";

/// Builds the root and makes it this process' own.
pub(crate) fn make(options: &Options, steps: &mut Steps) -> io::Result<Root> {
    steps.begin("private mounts")?;
    let everything = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    // A root that is no mount point (chroot) has no propagation of its own.
    let _ = mount_change("/", everything);
    let host_mounts = host_mounts()?;
    if host_mounts.iter().rfind(|m| m.target == "/").is_some_and(|m| m.fs_type == "rootfs") {
        // pivot_root(2), EINVAL: it is mounted on nothing.
        return Err(io::Error::other("/ is the kernel's initial ramfs, which cannot be pivoted: switch_root(8) first"));
    }
    steps.begin("bind sources")?;
    // Cloned before the stage hides what is below it.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mut binds = Vec::new();
    for (source, target, read_only) in &options.binds {
        let tree = open_tree(CWD, source.as_str(), flags).map_err(|e| named(e.into(), &format!("bind {source}")))?;
        binds.push((tree, Path::new(source).is_dir(), target, *read_only));
    }
    steps.begin("writable layer")?;
    tmpfs(Path::new(STAGE), 0o700, options.size)?;
    let root = Path::new(STAGE).join("root");
    for name in ["upper", "work", "root"] {
        fs::create_dir(Path::new(STAGE).join(name))?;
    }
    steps.begin("overlay")?;
    let mut not_covered = Vec::new();
    let layers = if sys::is_root() { whole_overlay(&root)? } else { overlays(&root, &mut not_covered)? };
    let mut fresh = Vec::new();
    steps.begin("devices")?;
    devices(&root, options)?;
    fresh.push(("/dev".to_owned(), open_dir(&root.join("dev"))?));
    steps.begin("temporary directories")?;
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
    steps.begin("proc")?;
    plain("proc", &below(&root, "/proc"))?;
    let proc = open_dir(&below(&root, "/proc"))?;
    steps.begin("sys")?;
    plain("sysfs", &below(&root, "/sys"))?;
    steps.begin("cgroups")?;
    match cgroups(&root, &host_mounts) {
        Err(e) if !sys::is_root() => not_covered.push(format!("/sys/fs/cgroup: {e}")),
        other => other?,
    }
    steps.begin("submounts")?;
    submounts(&root, &host_mounts, &mut not_covered);
    steps.begin("binds")?;
    for (tree, is_dir, target, read_only) in binds {
        attach(&tree, is_dir, &below(&root, target), read_only)
            .map_err(|e| named(e, &format!("bind to {target} in the arena")))?;
    }
    steps.begin("pivot")?;
    rustix::process::chdir(&root)?;
    sys::pivot_here().map_err(|e| named(e, "pivot_root (is / a mount point?)"))?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(Root { layers, proc, fresh, not_covered })
}

fn whole_overlay(root: &Path) -> io::Result<Vec<(String, OwnedFd)>> {
    // xino: /proc/locks and stat agree on the device; redirect_dir: directories of the host can be renamed.
    let upper = overlay("/", "", root, "xino=on,redirect_dir=on,index=off")
        .map_err(|e| named(e, "mount an overlay of / (on two overlays already?)"))?;
    Ok(vec![("/".to_owned(), upper)])
}

/// A user namespace may not see below the mounts that it was born with, so what has such mounts has no overlay: each directory of the
/// root gets one of its own, or is bound to be read.
fn overlays(root: &Path, not_covered: &mut Vec<String>) -> io::Result<Vec<(String, OwnedFd)>> {
    let mut layers = Vec::new();
    // The new root has to be a mount point.
    tmpfs(root, 0o755, 0)?;
    for entry in fs::read_dir("/")?.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let (Some(text), Ok(class)) = (path.to_str(), entry.file_type()) else { continue };
        let place = root.join(&name);
        if class.is_symlink() {
            symlink(fs::read_link(&path)?, place)?;
            continue;
        }
        let fresh = FRESH.iter().any(|(fresh, _)| *fresh == text) || ["/dev", "/proc", "/sys"].contains(&text);
        if !class.is_dir() || fresh {
            make_place(&place, class.is_dir())?;
            continue;
        }
        fs::create_dir(&place)?;
        match overlay(text, &format!("{}/", name.display()), &place, "userxattr") {
            Ok(upper) => layers.push((text.to_owned(), upper)),
            Err(e) => {
                let bound = mount_bind_recursive(text, &place).map(|()| read_only(&place));
                let how = if bound.is_ok() { "as on the host" } else { "not there" };
                not_covered.push(format!("{text}: {how}, as no overlay can be made of it: {e}"));
            }
        }
    }
    Ok(layers)
}

fn overlay(lower: &str, name: &str, place: &Path, options: &str) -> io::Result<OwnedFd> {
    let upper = format!("{STAGE}/upper/{name}");
    let work = format!("{STAGE}/work/{name}");
    for dir in [&upper, &work] {
        fs::create_dir_all(dir)?;
    }
    fs::set_permissions(&upper, fs::Permissions::from_mode(fs::metadata(lower)?.permissions().mode()))?;
    let data = format!("lowerdir={lower},upperdir={upper},workdir={work},{options}");
    let data = std::ffi::CString::new(data).map_err(io::Error::other)?;
    mount("overlay", place, "overlay", MountFlags::empty(), Some(data.as_c_str()))?;
    open_dir(Path::new(&upper))
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
        if !sys::is_root() && !Path::new("/dev").join(name).exists() {
            continue;
        }
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
    // Group 5, tty, is not known in a user namespace of ours.
    let ptys =
        Some(if sys::is_root() { c"newinstance,ptmxmode=0666,mode=0620,gid=5" } else { c"newinstance,ptmxmode=0666" });
    mount("devpts", dev.join("pts"), "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, ptys)
        .map_err(|e| named(e.into(), "mount devpts"))?;
    plain("mqueue", &dev.join("mqueue"))
}

/// A user namespace makes no devices: there the host's own node is bound.
fn node(path: &Path, class: FileType, dev: u64) -> io::Result<()> {
    if !sys::is_root() {
        let host = Path::new("/dev").join(path.strip_prefix(Path::new(STAGE).join("root/dev")).unwrap_or(path));
        fs::write(path, "")?;
        return mount_bind(&host, path).map_err(|e| named(e.into(), &format!("bind {}", host.display())));
    }
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
fn submounts(root: &Path, host: &[HostMount], not_covered: &mut Vec<String>) {
    const OURS: [&str; 7] = ["/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp", "/var/run"];
    if !sys::is_root() {
        return;
    }
    for m in host.iter().filter(|m| m.target != "/") {
        if OURS.iter().any(|ours| Path::new(&m.target).starts_with(ours)) {
            continue;
        }
        if let Err(e) = bind(&m.target, &below(root, &m.target)) {
            not_covered.push(format!("{}: {e}", m.target));
        }
    }
}

fn bind(source: &str, target: &Path) -> io::Result<()> {
    make_place(target, Path::new(source).is_dir())?;
    mount_bind(source, target)?;
    read_only(target)
}

fn attach(tree: &OwnedFd, is_dir: bool, target: &Path, only_read: bool) -> io::Result<()> {
    make_place(target, is_dir)?;
    move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    if only_read { read_only(target) } else { Ok(()) }
}

fn make_place(target: &Path, is_dir: bool) -> io::Result<()> {
    if target.exists() {
        return Ok(());
    }
    if is_dir {
        return fs::create_dir_all(target);
    }
    fs::create_dir_all(target.parent().unwrap_or(target))?;
    fs::write(target, "")
}

fn read_only(target: &Path) -> io::Result<()> {
    // Flags that the mount has already must be named again (mount(2), EPERM).
    let kept = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount_remount(target, kept, "")?)
}
