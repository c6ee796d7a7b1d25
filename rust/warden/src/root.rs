//! The root file system of an arena, built from inside its new mount namespace: an overlay of the host's root, a fresh
//! tmpfs on each directory for temporary files, its own `/dev`, a fresh `/proc`, and the arena's cgroups.

mod layers;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use leakcheck_parse::mountinfo::is_served;
use leakcheck_sys as sys;
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsmount, fsopen, mount, mount_change, move_mount, open_tree, unmount,
};

use crate::error::Doing;
use crate::message::{Options, Steps};
use crate::mounts::{self, Mount, shown};
use crate::process::is_root;
use layers::{overlays, whole_overlay};

/// The fresh tmpfs, with their modes. `/dev` is another one.
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

/// The finished root.
pub(crate) struct Root {
    /// The mount point of each overlay, and the root of its upper layer.
    pub(crate) layers: Vec<(String, OwnedFd)>,
    /// The root itself. A process that enters the mount namespace starts at the root of the namespace, which is a
    /// different one in a chroot.
    pub(crate) top: OwnedFd,
    /// `/dev/null` inside; it is also the standard streams of PID 1.
    pub(crate) null: OwnedFd,
    /// The arena's `/proc`.
    pub(crate) proc: OwnedFd,
    /// Path and descriptor of each fresh tmpfs.
    pub(crate) fresh: Vec<(String, OwnedFd)>,
    /// Those of these that have mounts in them again, without the mounts.
    pub(crate) bare: Vec<(String, OwnedFd)>,
    /// Where these mounts are: a process that unmounts one in a mount namespace of its own writes beneath it.
    pub(crate) covered: Vec<String>,
    /// Paths of the host that are missing or read-only here, with the reason.
    pub(crate) not_covered: Vec<String>,
}

/// Where the overlay is built before it becomes the root. Every Linux has this directory, and it gets a fresh tmpfs anyway.
const STAGE: &str = "/tmp";

/// Builds the root and makes it the root of this process.
///
/// It first opens what it needs of the host, then enters the new root, and only there creates files by path: a symbolic
/// link inside cannot lead back to the host.
pub(crate) fn make(options: &Options, steps: &mut Steps) -> io::Result<Root> {
    steps.begin("private mounts")?;
    let everything = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    // A root that is not a mount point (chroot) has no propagation of its own.
    let _ = mount_change("/", everything);
    let host_mounts = mounts::list()?;
    if host_mounts.iter().rfind(|m| m.point() == Path::new("/")).is_some_and(|m| &*m.fs_type == b"rootfs") {
        // pivot_root(2) fails with EINVAL: nothing is below it.
        return Err(io::Error::other("/ is the kernel's initial ramfs, which cannot be pivoted: switch_root(8) first"));
    }
    steps.begin("bind sources")?;
    let mut binds = Vec::new();
    for (source, target, read_only) in &options.binds {
        let tree = Tree::of(Path::new(source), true, *read_only).doing("bind", source)?;
        binds.push((tree, Path::new(target)));
    }
    let mut not_covered = Vec::new();
    let mut submounts = submounts(&host_mounts, &mut not_covered);
    let nodes = nodes(options)?;
    let cgroup_links = cgroup_links(&host_mounts)?;
    let run = run_directory(&host_mounts);
    steps.begin("writable layer")?;
    tmpfs(Path::new(STAGE), 0o700, options.size)?;
    let root = Path::new(STAGE).join("root");
    for name in ["upper", "work", "root"] {
        fs::create_dir(Path::new(STAGE).join(name))?;
    }
    steps.begin("overlay")?;
    for (tree, mount) in submounts.iter_mut().filter(|(tree, mount)| tree.is_dir && !is_served(&mount.fs_type)) {
        // A file system that cannot be a layer (FAT) is bound read-only, which root inside may change.
        if let Ok(sealed) = layers::read_only(mount) {
            *tree = Tree { fd: sealed, is_dir: true };
        }
    }
    let layers =
        if is_root() { whole_overlay(&root)? } else { overlays(&root, options.size, &host_mounts, &mut not_covered)? };
    steps.begin("pivot")?;
    rustix::process::chdir(&root)?;
    // This leaves the old root mounted on top of the new one (pivot_root(2)).
    rustix::process::pivot_root(".", ".").during("pivot_root (is / a mount point?)")?;
    // The old root is still there for these two: a user namespace may mount them only while it sees others of their type.
    steps.begin("proc")?;
    plain("proc", Path::new("/proc"))?;
    // Processes inside can mount over this one, but not over a second procfs that is not attached anywhere.
    let proc = private_proc().or_else(|_| open_dir(Path::new("/proc")))?;
    steps.begin("sys")?;
    plain("sysfs", Path::new("/sys"))?;
    steps.begin("old root")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    let mut fresh = Vec::new();
    steps.begin("devices")?;
    devices(&nodes, options.size)?;
    fresh.push(("/dev".to_owned(), open_dir(Path::new("/dev"))?));
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // Through /proc/1/fd, root inside could change the mode of the host's.
    sys::set_streams([null.as_fd(); 3])?;
    steps.begin("temporary directories")?;
    for (path, mode) in FRESH {
        let target = Path::new(path);
        if !target.is_dir() {
            fs::create_dir_all(target)?;
        }
        tmpfs(target, mode, options.size)?;
        fresh.push((path.to_owned(), open_dir(target)?));
    }
    fill_run(&run)?;
    steps.begin("cgroups")?;
    match cgroups(&host_mounts, &cgroup_links) {
        Err(e) if !is_root() => not_covered.push(format!("{CGROUPS}: {}", sys::in_words(&e))),
        other => fresh.extend(other?.map(|fd| (CGROUPS.to_owned(), fd))),
    }
    steps.begin("submounts")?;
    for (tree, mount) in &submounts {
        if let Err(e) = tree.attach(mount.point()) {
            not_covered.push(format!("{}: {}", shown(mount.point()), sys::in_words(&e)));
        }
    }
    steps.begin("binds")?;
    for (tree, target) in &binds {
        tree.attach(target).doing("bind in the arena to", target)?;
    }
    let (mut without, mut covered) = (Vec::new(), Vec::new());
    let mounts = mounts::list()?;
    for (path, _) in &fresh {
        let top = Path::new(path);
        let inside = mounts.iter().map(Mount::point).filter(|point| *point != top && point.starts_with(top));
        // A tmpfs within this one has its own.
        let other = |point: &Path| {
            fresh
                .iter()
                .any(|(other, _)| point != Path::new(other) && point.starts_with(other) && other.len() > path.len())
        };
        let points: Vec<String> =
            inside.filter(|point| !other(point)).map(|point| point.display().to_string()).collect();
        if !points.is_empty() {
            without.push((path.clone(), bare(top).doing("copy the mount of", path)?));
            covered.extend(points);
        }
    }
    if !is_root() {
        // Not an overlay: what is made in it is new.
        fresh.push(("/".to_owned(), bare(Path::new("/"))?));
    }
    Ok(Root { top: open_dir(Path::new("/"))?, null, layers, proc, fresh, bare: without, covered, not_covered })
}

/// A copy of one mount alone. It shows what is in it whatever is mounted over it.
fn bare(path: &Path) -> io::Result<OwnedFd> {
    let copy = Tree::of(path, false, false)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&copy.fd, ".", flags, Mode::empty())?)
}

/// A part of the host's file systems, cloned and not attached yet (open_tree(2)).
struct Tree {
    fd: OwnedFd,
    is_dir: bool,
}

impl Tree {
    fn of(source: &Path, recursive: bool, read_only: bool) -> io::Result<Self> {
        let (place, is_dir) = open_place(source)?;
        Self::at(&place, is_dir, recursive, read_only)
    }

    /// A single mount, read-only; none if no path reaches it, since another mount covers it.
    fn of_mount(mount: &Mount) -> io::Result<Option<Self>> {
        let (place, is_dir) = match open_place(mount.point()) {
            Ok(found) => found,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        if mounts::id_of(&place)? != mount.id {
            return Ok(None);
        }
        Self::at(&place, is_dir, false, true).map(Some)
    }

    fn at(place: &OwnedFd, is_dir: bool, recursive: bool, read_only: bool) -> io::Result<Self> {
        let mut flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
        let fd = open_tree(place, "", flags)?;
        if read_only {
            sys::set_mount_attributes(fd.as_fd(), libc::MOUNT_ATTR_RDONLY, recursive)?;
        }
        Ok(Tree { fd, is_dir })
    }

    fn attach(&self, target: &Path) -> io::Result<()> {
        make_place(target, self.is_dir)?;
        Ok(move_mount(&self.fd, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
    }
}

/// Opens a path, and returns whether it is a directory. This sends no request to its file system, which may not answer
/// (FUSE).
fn open_place(path: &Path) -> rustix::io::Result<(OwnedFd, bool)> {
    let place = OFlags::PATH | OFlags::CLOEXEC;
    match rustix::fs::open(path, place | OFlags::DIRECTORY, Mode::empty()) {
        Err(Errno::NOTDIR) => Ok((rustix::fs::open(path, place, Mode::empty())?, false)),
        other => Ok((other?, true)),
    }
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// A procfs of this pid namespace that is not attached anywhere (fsopen(2), fsmount(2), Linux 5.2).
fn private_proc() -> io::Result<OwnedFd> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let flags =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
}

fn plain(fs_type: &str, target: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(fs_type, target, fs_type, flags, None).doing(format_args!("mount {fs_type} on"), target)
}

fn tmpfs(target: &Path, mode: u32, size: u64) -> io::Result<()> {
    let size = if size == 0 { String::new() } else { format!(",size={size}") };
    let data = std::ffi::CString::new(format!("mode={mode:o}{size}")).map_err(io::Error::other)?;
    mount("tmpfs", target, "tmpfs", MountFlags::empty(), Some(data.as_c_str())).doing("mount tmpfs on", target)
}

/// How to get a device node. A user namespace cannot create one, so it binds the host's.
enum Node {
    Made(FileType, u64),
    Bound(Tree),
}

fn nodes(options: &Options) -> io::Result<Vec<(String, Node)>> {
    let mut nodes = Vec::new();
    for (name, major, minor) in DEVICES {
        let host = Path::new("/dev").join(name);
        if is_root() {
            nodes.push((name.to_owned(), Node::Made(FileType::CharacterDevice, makedev(major, minor))));
        } else if host.exists() {
            nodes.push((name.to_owned(), Node::Bound(Tree::of(&host, false, false)?)));
        }
    }
    for name in &options.devices {
        use std::os::unix::fs::FileTypeExt;
        let host = Path::new("/dev").join(name);
        let found = fs::metadata(&host).doing("find device", &host)?;
        let class = if found.file_type().is_block_device() { FileType::BlockDevice } else { FileType::CharacterDevice };
        let node =
            if is_root() { Node::Made(class, found.rdev()) } else { Node::Bound(Tree::of(&host, false, false)?) };
        nodes.push((name.clone(), node));
    }
    Ok(nodes)
}

fn devices(nodes: &[(String, Node)], size: u64) -> io::Result<()> {
    let dev = Path::new("/dev");
    tmpfs(dev, 0o755, size)?;
    for dir in ["pts", "shm", "mqueue", "net"] {
        fs::create_dir(dev.join(dir))?;
    }
    for (name, node) in nodes {
        let path = dev.join(name);
        let made = match node {
            Node::Bound(tree) => tree.attach(&path),
            Node::Made(class, device) => mknodat(CWD, &path, *class, Mode::from_raw_mode(0o666), *device)
                .map_err(io::Error::from)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o666))),
        };
        made.doing("make", &path)?;
    }
    let links =
        [("ptmx", "pts/ptmx"), ("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")];
    for (name, to) in links {
        symlink(to, dev.join(name))?;
    }
    // Our user namespace does not map group 5, tty.
    let ptys =
        Some(if is_root() { c"newinstance,ptmxmode=0666,mode=0620,gid=5" } else { c"newinstance,ptmxmode=0666" });
    mount("devpts", dev.join("pts"), "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, ptys)
        .doing("mount devpts on", dev.join("pts"))?;
    plain("mqueue", &dev.join("mqueue"))
}

const CGROUPS: &str = "/sys/fs/cgroup";

/// If the hierarchies are mounted in a tmpfs, the symbolic links beside them (`cpu` → `cpu,cpuacct`): name and target.
fn cgroup_links(host: &[Mount]) -> io::Result<Option<Vec<(PathBuf, PathBuf)>>> {
    if !host.iter().any(|m| m.point() == Path::new(CGROUPS) && &*m.fs_type == b"tmpfs") {
        return Ok(None);
    }
    let links = fs::read_dir(CGROUPS)?.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_symlink()));
    links.map(|e| Ok((e.path(), fs::read_link(e.path())?))).collect::<io::Result<_>>().map(Some)
}

/// Mounts the same hierarchies at the same paths. In the new cgroup namespace, the root of each is the arena's own cgroup.
/// Returns the tmpfs that contains them, if there is one.
fn cgroups(host: &[Mount], links: &Option<Vec<(PathBuf, PathBuf)>>) -> io::Result<Option<OwnedFd>> {
    let mut tmp = None;
    if let Some(links) = links {
        tmpfs(Path::new(CGROUPS), 0o755, 0)?;
        tmp = Some(open_dir(Path::new(CGROUPS))?);
        for (path, target) in links {
            symlink(target, path)?;
        }
    }
    for m in host.iter().filter(|m| m.fs_type.starts_with(b"cgroup") && m.point().starts_with(CGROUPS)) {
        fs::create_dir_all(m.point())?;
        const NOT_PASSED: [&str; 4] = ["rw", "ro", "nsdelegate", "memory_recursiveprot"];
        let (fs_type, options) = (String::from_utf8_lossy(&m.fs_type), String::from_utf8_lossy(&m.super_options));
        let mut words: Vec<&str> = options.split(',').filter(|w| !NOT_PASSED.contains(w)).collect();
        words.retain(|w| !w.starts_with("release_agent="));
        if words.iter().any(|w| w.starts_with("name=")) && words.len() == 1 {
            words.insert(0, "none");
        }
        let data = std::ffi::CString::new(words.join(",")).map_err(io::Error::other)?;
        let data = (fs_type == "cgroup").then_some(data.as_c_str());
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("cgroup", m.point(), &*fs_type, flags, data).doing(format_args!("mount {fs_type} on"), m.point())?;
    }
    Ok(tmp)
}

/// A file or directory that an arena's `/run` starts with.
struct Entry {
    path: PathBuf,
    is_dir: bool,
    mode: u32,
    owner: (u32, u32),
}

/// The directories and empty files directly in the host's `/run`. Tools create such files at their first use and leave
/// them (`/run/mount`, `/run/netns`, `/run/xtables.lock`); a tool that finds them here leaves nothing. What is below them
/// is not copied: it shows which services run on the host (`/run/systemd/system`), and an arena cannot reach those.
fn run_directory(host: &[Mount]) -> Vec<Entry> {
    let lock = Entry { path: "/run/lock".into(), is_dir: true, mode: 0o1777, owner: (0, 0) };
    let mut found = vec![lock];
    for entry in fs::read_dir("/run").into_iter().flatten().flatten().take(MOST_IN_RUN) {
        let path = entry.path();
        // A file system that is mounted there may not answer.
        let silent = host.iter().any(|m| m.point() == path && is_served(&m.fs_type));
        let Some(st) = (!silent).then(|| fs::symlink_metadata(&path).ok()).flatten() else { continue };
        if path != found[0].path && (st.is_dir() || st.is_file() && st.len() == 0) {
            found.push(Entry { path, is_dir: st.is_dir(), mode: st.mode() & 0o7777, owner: (st.uid(), st.gid()) });
        }
    }
    found
}

/// How many entries of `/run` are examined.
const MOST_IN_RUN: usize = 1000;

fn fill_run(entries: &[Entry]) -> io::Result<()> {
    for Entry { path, is_dir, mode, owner } in entries {
        if *is_dir {
            fs::create_dir(path)?
        } else {
            fs::write(path, "")?
        }
        // Our user namespace maps no other owner.
        if is_root() {
            std::os::unix::fs::lchown(path, Some(owner.0), Some(owner.1))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(*mode))?;
    }
    Ok(())
}

/// The mounts that the overlay of `/` does not contain, to be bound read-only. Those that cannot be bound are added to
/// `not_covered`.
fn submounts<'a>(host: &'a [Mount], not_covered: &mut Vec<String>) -> Vec<(Tree, &'a Mount)> {
    const OURS: [&str; 7] = ["/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp", "/var/run"];
    let mut trees = Vec::new();
    // In a user namespace, a directory with submounts is bound as a whole.
    for m in host.iter().filter(|m| m.point() != Path::new("/") && is_root()) {
        // An automount point: what it has mounted is a separate mount, and we must not trigger another one.
        if &*m.fs_type == b"autofs" || OURS.iter().any(|ours| m.point().starts_with(ours)) {
            continue;
        }
        if let Some(server) = host.iter().find(|on| {
            is_served(&on.fs_type)
                && on.point() != Path::new("/")
                && on.point() != m.point()
                && m.point().starts_with(on.point())
        }) {
            not_covered.push(format!("{}: it is below {}, which may hang", shown(m.point()), shown(server.point())));
            continue;
        }
        match Tree::of_mount(m) {
            Ok(Some(tree)) => trees.push((tree, m)),
            Ok(None) => {}
            Err(e) => not_covered.push(format!("{}: {}", shown(m.point()), sys::in_words(&e))),
        }
    }
    trees
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
