//! Calls each kernel interface that the observer prefers once.

use std::fs::File;
use std::os::fd::AsFd;

use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::advice;
use super::examination::{Container, Finding, Source, User};
use crate::observe::read_file;
use crate::observe::sys::{self, MountStat};
use crate::parse::mountinfo;
use crate::snapshot::{Coverage, Level};
use crate::text::Text;
use crate::watch::Levels;

/// `PID_FS_MAGIC`, linux/magic.h.
const PIDFS_MAGIC: u64 = 0x5049_4446;

/// Every source, the most important first.
pub(super) fn examine(levels: &Levels, user: &User, container: &Container) -> Vec<Source> {
    let mut all = vec![
        procfs(user),
        watched("forks and exits", &levels.descent, user, container),
        watched("fanotify mounts", &levels.mounts, user, container),
    ];
    for (path, level) in &levels.files {
        all.push(watched(&format!("fanotify: {}", Text::from(path.as_path())), level, user, container));
    }
    all.extend(calls());
    all
}

fn full(name: &str) -> Source {
    Source { name: name.to_owned(), finding: Finding { level: Level::Full, reason: String::new(), fix: String::new() } }
}

fn lacking(name: &str, level: Level, reason: String, fix: &str) -> Source {
    Source { name: name.to_owned(), finding: Finding { level, reason, fix: fix.to_owned() } }
}

fn watched(name: &str, coverage: &Coverage, user: &User, container: &Container) -> Source {
    let fix = advice::of_watch(coverage, user, container);
    Source { name: name.to_owned(), finding: Finding { level: coverage.level, reason: coverage.reason.clone(), fix } }
}

/// `hidepid` of proc(5) hides other users' processes, unless `gid=` names a group of ours.
fn procfs(user: &User) -> Source {
    let text = read_file("/proc/self/mountinfo").unwrap_or_default();
    let mounts = mountinfo::parse(&text).unwrap_or_default();
    let hides = mounts
        .iter()
        .rfind(|m| &*m.mount_point == b"/proc" && &*m.fs_type == b"proc")
        .and_then(|m| {
            Some(String::from_utf8_lossy(&m.super_options).split(',').find(|o| o.starts_with("hidepid="))?.to_owned())
        })
        .filter(|option| !matches!(option.as_str(), "hidepid=0" | "hidepid=off"));
    match hides {
        Some(option) if !user.may("cap_sys_ptrace") => lacking(
            "proc",
            Level::Partial,
            format!("/proc is mounted with {option}, which hides the processes of other users"),
            "run as root, or: mount -o remount,hidepid=0 /proc",
        ),
        Some(_) | None => full("proc"),
    }
}

/// System calls and their replacements.
fn calls() -> Vec<Source> {
    let mounts = sys::listmount(0);
    let first = mounts.as_ref().ok().and_then(|ids| ids.first().copied());
    let stat = first.map(|id| MountStat::of(id, 0).map(|_| ()));
    let own = |name: &str, id: fn(std::os::fd::BorrowedFd<'_>) -> Option<u64>| {
        let file = File::open(format!("/proc/self/ns/{name}"))?;
        id(file.as_fd()).ok_or_else(std::io::Error::last_os_error)
    };
    let me = std::process::id();
    let pidfd = pidfd_open(getpid(), PidfdFlags::empty());
    let pidfs =
        pidfd.as_ref().ok().and_then(|fd| rustix::fs::fstatfs(fd).ok()).map(|fs| fs.f_type as u64 == PIDFS_MAGIC);
    let mountinfo = "needs Linux 6.8; leakcheck reads mountinfo instead, whose ids are reused";
    vec![
        of_call("listmount", mounts.map(|_| ()), mountinfo),
        of_call("statmount", stat.unwrap_or_else(|| Err(not_tried("listmount returned nothing"))), mountinfo),
        of_call(
            "mount namespace ids",
            own("mnt", sys::mount_ns_id).map(|_| ()),
            "needs Linux 6.11; leakcheck cannot list a mount namespace without processes",
        ),
        of_call(
            "namespace ids",
            own("net", sys::ns_id).map(|_| ()),
            "needs Linux 6.18; leakcheck uses inode numbers instead, which are reused",
        ),
        of_call(
            "kcmp",
            sys::same_fd_table(me, me).map(|_| ()),
            "needs CONFIG_KCMP and a seccomp filter that permits kcmp; leakcheck cannot find a thread with a descriptor table of its own",
        ),
        of_call(
            "pidfd",
            pidfd.map(|_| ()).map_err(Into::into),
            "needs Linux 5.3 and a seccomp filter that permits pidfd_open; leakcheck reap cannot kill processes",
        ),
        match pidfs {
            Some(true) => full("pidfs"),
            Some(false) | None => lacking(
                "pidfs",
                Level::None,
                "a pidfd has no inode of its own".to_owned(),
                "needs Linux 6.9; leakcheck uses pid and start time instead, which distinguish processes to 1/100 s",
            ),
        },
        of_call(
            "pressure stall information",
            read_file("/proc/pressure/cpu").map(|_| ()).map_err(|e| not_tried(&e.to_string())),
            "boot with psi=1 (CONFIG_PSI); settling uses the load average instead",
        ),
    ]
}

fn not_tried(why: &str) -> std::io::Error {
    std::io::Error::other(why.to_owned())
}

fn of_call(name: &str, result: std::io::Result<()>, fix: &str) -> Source {
    match result {
        Ok(()) => full(name),
        Err(e) => lacking(name, Level::None, e.to_string(), fix),
    }
}
