//! An arena's cgroup in every mounted hierarchy, below the caller's own (cgroups(7)).
//!
//! Only cgroup directories outlive an arena's processes. So each arena holds a lock (flock(2)) on its first directory:
//! a directory that no process locks is from a dead warden, whatever its name or number.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use leakcheck_parse::cgroup;
use leakcheck_sys as sys;
use rustix::fs::{Access, FlockOperation, Mode, OFlags, flock};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};

use crate::ending;
use crate::error::Doing;
use crate::mounts;

const PREFIX: &str = "leakcheck-arena-";
const V2: &str = "v2";

/// A hierarchy and the directory of our own cgroup in it.
#[derive(Clone, Debug)]
pub(crate) struct Hierarchy {
    /// `v2`, or the controllers as `/proc/PID/cgroup` writes them.
    pub(crate) name: String,
    own: PathBuf,
    /// The path of our own cgroup in the hierarchy.
    path: PathBuf,
}

impl Hierarchy {
    /// Our own cgroup in a named v1 hierarchy, without the mount that its owner may have taken away: it stays in the kernel
    /// as long as it contains cgroups (fsopen(2)). Without a controller and `none`, only an existing one is mounted.
    fn unmounted(&self) -> io::Result<(OwnedFd, PathBuf)> {
        let name = self.name.strip_prefix("name=").ok_or(io::ErrorKind::NotFound)?;
        let context = fsopen("cgroup", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "name", name)?;
        fsconfig_create(&context)?;
        let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        let own = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd())).join(&self.path);
        Ok((root, own))
    }
}

/// The mounted hierarchies that are writable here.
pub(crate) fn hierarchies() -> io::Result<Vec<Hierarchy>> {
    let mounts = mounts::list()?;
    let text = fs::read("/proc/self/cgroup")?;
    let mut found: Vec<Hierarchy> = Vec::new();
    for entry in cgroup::parse(&text)? {
        let Some(own) = cgroup::directories(&entry, &mounts).next() else { continue };
        // An unprivileged user has the delegated ones; for root, an unwritable one is an error.
        if !rustix::process::geteuid().is_root() && rustix::fs::access(&own, Access::WRITE_OK).is_err() {
            continue;
        }
        let name = if entry.is_v2() { V2.to_owned() } else { String::from_utf8_lossy(entry.controllers).into_owned() };
        let path = OsStr::from_bytes(entry.path.strip_prefix(b"/").unwrap_or(entry.path)).into();
        found.push(Hierarchy { name, own, path });
    }
    Ok(found)
}

/// Whether a hierarchy's name is that of a v1 controller.
fn has(name: &str, controller: &str) -> bool {
    name.split(',').any(|c| c == controller)
}

/// The cgroup directories of one arena.
pub(crate) struct Cgroups {
    /// Hierarchy name, and the directory that is its root inside.
    pub(crate) dirs: Vec<(String, PathBuf)>,
    /// The directories created below our own cgroup: each of the above, or the directory with the limits above it.
    tops: Vec<PathBuf>,
    /// Where each of the above is.
    hierarchies: Vec<Hierarchy>,
    /// Why a limit could not be set.
    refused: Option<String>,
    lock: Option<OwnedFd>,
}

impl Cgroups {
    /// Makes the directories; the first is locked before the others are made.
    pub(crate) fn make(all: &[Hierarchy], name: &str, limits: &[(String, String)]) -> io::Result<Self> {
        let mut made =
            Cgroups { dirs: Vec::new(), tops: Vec::new(), hierarchies: Vec::new(), refused: None, lock: None };
        for hierarchy in all {
            if hierarchy.name.starts_with("name=") && !hierarchy.own.exists() {
                continue; // Its owner has unmounted it meanwhile.
            }
            let dir = hierarchy.own.join(format!("{PREFIX}{name}"));
            let done = fs::create_dir(&dir).and_then(|()| {
                made.dirs.push((hierarchy.name.clone(), dir.clone()));
                made.tops.push(dir.clone());
                made.hierarchies.push(hierarchy.clone());
                if made.lock.is_none() {
                    made.lock = Some(lock(&dir)?.ok_or(io::ErrorKind::WouldBlock)?);
                }
                if has(&hierarchy.name, "cpuset") {
                    inherit_cpuset(&dir)?;
                }
                Ok(())
            });
            done.doing("make cgroup", &dir)?;
        }
        made.refused = made.limit(limits).err().map(|e| e.to_string());
        Ok(made)
    }

    /// Writes each limit to the hierarchy that has such a file. The root that is visible inside, whose files root may
    /// write, is then one level below.
    fn limit(&mut self, limits: &[(String, String)]) -> io::Result<()> {
        for (file, value) in limits {
            let at = self.tops.iter().position(|top| top.join(file).exists());
            let at = at.ok_or_else(|| io::Error::other(format!("cgroup limit {file}: no hierarchy here has it")))?;
            let (top, (name, dir)) = (&self.tops[at], &mut self.dirs[at]);
            // Before Linux 5.11, a v1 memory limit applied to descendants only if this was enabled.
            let _ = fs::write(top.join("memory.use_hierarchy"), "1");
            let path = top.join(file);
            fs::write(&path, value).doing(format_args!("write {value} to"), &path)?;
            if dir == top {
                *dir = top.join("arena");
                fs::create_dir(&dir)?;
                if name == V2 {
                    pass_controllers_on(top)?;
                }
            }
            // Its initial value may exceed the limit, and processes inside should see the limit.
            if has(name, "cpuset") {
                inherit_cpuset(dir)?;
            } else if dir.join(file).exists() {
                fs::write(dir.join(file), value)?;
            }
        }
        Ok(())
    }

    /// Whether every limit holds.
    pub(crate) fn limited(&self) -> io::Result<()> {
        self.refused.as_ref().map_or(Ok(()), |why| Err(io::Error::other(why.clone())))
    }

    /// Moves the calling process, which has one thread, into those that cannot stop it.
    ///
    /// The spawner stays outside of the others, in our own cgroup: root inside may freeze an arena completely, and the
    /// spawner must still be able to report that.
    pub(crate) fn enter(&self) -> io::Result<()> {
        self.dirs.iter().filter(|(name, _)| !freezes(name)).try_for_each(|(name, dir)| enter(name, dir))
    }

    /// The other ones, which can freeze what is in them.
    pub(crate) fn freezers(&self) -> Freezers {
        let of = |(name, dir): &(String, PathBuf), top: &PathBuf| {
            let own = top.parent().unwrap_or(top).to_owned();
            Freezer { name: name.clone(), own, dir: dir.clone(), members: dir.clone() }
        };
        let all = self.dirs.iter().zip(&self.tops).filter(|((name, _), _)| freezes(name));
        Freezers(all.map(|(dir, top)| of(dir, top)).collect())
    }

    /// Lets killed processes exit: `pids`, with which all others end, leave every freezer, and everything is thawed.
    /// Other living processes are killed.
    pub(crate) fn let_end(&self, pids: &[i32]) {
        // Also before: what is thawed with a pending SIGKILL does nothing more.
        self.kill();
        for (_, dir) in self.dirs.iter().filter(|(_, dir)| dir.join("freezer.state").exists()) {
            // A process that freezes again meanwhile does not reach them in the parent cgroup.
            for pid in pids {
                ending::move_to(dir.parent().unwrap_or(dir), *pid);
            }
            ending::thaw(dir);
        }
        self.kill();
    }

    fn kill(&self) {
        if let Some((_, dir)) = self.dirs.first() {
            ending::kill(dir);
        }
    }

    /// The living processes in them.
    pub(crate) fn remaining(&self) -> Vec<String> {
        self.dirs.first().map_or_else(Vec::new, |(_, dir)| ending::remaining(dir))
    }

    /// Removes them and their descendants, the locked one last; returns what cannot be removed by `deadline`.
    pub(crate) fn remove(&mut self, deadline: Instant) -> io::Result<()> {
        let mut failed = Ok(());
        while let Some(top) = self.tops.pop() {
            let mut removed = ending::remove(&top, deadline);
            if removed.as_ref().is_ok_and(|found| !found)
                && let Ok((_root, own)) = self.hierarchies[self.tops.len()].unmounted()
                && let Some(name) = top.file_name()
            {
                removed = ending::remove(&own.join(name), deadline);
            }
            failed = removed.map(drop).and(failed);
        }
        self.lock = None;
        failed
    }

    /// Leaves the lock to the process that took it: call it in a fork of that process, which must not drop them.
    pub(crate) fn disown(&mut self) {
        self.lock.take().map(IntoRawFd::into_raw_fd);
    }
}

/// An arena's cgroups that can freeze what is in them: of v2 and of the v1 freezer.
pub(crate) struct Freezers(Vec<Freezer>);

struct Freezer {
    name: String,
    /// The cgroup of the caller, above the arena's.
    own: PathBuf,
    /// The arena's cgroup.
    dir: PathBuf,
    /// The same, or the leaf in it that takes new processes.
    members: PathBuf,
}

impl Freezers {
    /// Forks, into the v2 cgroup if that is possible: moving a process later on v2 waits for the kernel. `None` in the
    /// child, which must [`enter`](Self::enter); and whether it was cloned into the v2 cgroup.
    pub(crate) fn fork(&self, flags: i32) -> io::Result<(Option<sys::Child>, bool)> {
        let open = |v2: &Freezer| {
            rustix::fs::open(&v2.members, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
        };
        if let Some(target) = self.0.iter().find(|f| f.name == V2).and_then(open) {
            // If it is not permitted, the move reports why.
            if let Ok(child) = sys::fork(flags, Some(target.as_fd())) {
                return Ok((child, true));
            }
        }
        Ok((sys::fork(flags, None)?, false))
    }

    /// Moves the calling process, which has one thread, into them. `cloned_into`: whether it is in the v2 cgroup already.
    pub(crate) fn enter(&self, cloned_into: bool) -> io::Result<()> {
        self.0.iter().filter(|f| !(cloned_into && f.name == V2)).try_for_each(|f| enter(&f.name, &f.members))
    }

    /// Takes a process of one thread out of them, which thaws it.
    pub(crate) fn free(&self, pid: i32) {
        for freezer in &self.0 {
            let _ = fs::write(freezer.own.join(procs(&freezer.name)), pid.to_string());
        }
    }

    /// Whether the whole arena is frozen.
    pub(crate) fn frozen(&self) -> bool {
        self.0.iter().any(|f| {
            let file = f.dir.join(if f.name == V2 { "cgroup.freeze" } else { "freezer.self_freezing" });
            fs::read(file).is_ok_and(|text| text.trim_ascii() == b"1")
        })
    }

    /// If v2 has controllers, moves `init` into a leaf, and enables all controllers for the leaf's siblings: a v2 cgroup
    /// that contains processes cannot enable controllers for its children (cgroups(7), no internal processes rule). The
    /// namespace's root stays above the leaf.
    pub(crate) fn enable_controllers(&mut self, init: i32) -> io::Result<()> {
        let Some(v2) = self.0.iter_mut().find(|f| f.name == V2) else { return Ok(()) };
        if controllers(&v2.dir)?.is_empty() {
            return Ok(());
        }
        let leaf = v2.dir.join("init");
        fs::create_dir(&leaf)?;
        fs::write(leaf.join("cgroup.procs"), init.to_string())?;
        pass_controllers_on(&v2.dir)?;
        v2.members = leaf;
        Ok(())
    }
}

fn freezes(hierarchy: &str) -> bool {
    hierarchy == V2 || has(hierarchy, "freezer")
}

/// On v1, a thread that moves only itself does not take the lock for which moving a process waits about 10 ms.
fn procs(hierarchy: &str) -> &'static str {
    if hierarchy == V2 { "cgroup.procs" } else { "tasks" }
}

fn enter(hierarchy: &str, dir: &Path) -> io::Result<()> {
    let path = dir.join(procs(hierarchy));
    fs::write(&path, "0").doing("write", &path)
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let _ = self.remove(Instant::now() + SWEEP);
    }
}

/// Time limit of the sweep for one arena. The processes in its cgroups may be unable to exit.
const SWEEP: Duration = Duration::from_millis(500);

/// Removes what a killed warden left: the cgroups of every arena whose lock is free, with the frozen processes in them.
pub(crate) fn sweep(all: &[Hierarchy]) {
    let mut names: Vec<String> = Vec::new();
    for hierarchy in all {
        let entries = fs::read_dir(&hierarchy.own).into_iter().flatten().flatten();
        let found = entries.filter_map(|e| e.file_name().into_string().ok()).filter(|n| n.starts_with(PREFIX));
        names.extend(found);
    }
    names.sort();
    names.dedup();
    for name in names {
        let dirs: Vec<PathBuf> = all.iter().map(|h| h.own.join(&name)).collect();
        // The first of the remaining directories is the locked one: it is created first and removed last.
        let Some(first) = dirs.iter().find(|d| d.exists()) else { continue };
        if let Ok(Some(_held)) = lock(first) {
            let deadline = Instant::now() + SWEEP;
            for dir in dirs.iter().rev() {
                ending::kill(dir);
                ending::thaw(dir);
            }
            for dir in dirs.iter().rev() {
                let _ = ending::remove(dir, deadline);
            }
        }
    }
}

fn lock(dir: &Path) -> io::Result<Option<OwnedFd>> {
    let fd = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(fd)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The v2 controllers that a cgroup has.
fn controllers(dir: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(dir.join("cgroup.controllers"))?.trim().to_owned())
}

/// Enables all controllers for the children of a v2 cgroup, which must contain no process itself.
fn pass_controllers_on(dir: &Path) -> io::Result<()> {
    let enabled: Vec<String> = controllers(dir)?.split_whitespace().map(|c| format!("+{c}")).collect();
    fs::write(dir.join("cgroup.subtree_control"), enabled.join(" "))
}

/// A v1 cpuset takes no process before it has processors and memory nodes (cpuset(7)).
fn inherit_cpuset(dir: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let parent = dir.parent().unwrap_or(dir);
        let inherited = fs::read_to_string(parent.join(file))?;
        fs::write(dir.join(file), inherited.trim())?;
    }
    Ok(())
}
