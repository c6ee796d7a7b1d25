//! The end of an arena's cgroups: frozen processes are thawed, living ones are killed, and the directories are removed.
//!
//! SIGKILL does not end a process in a frozen v1 freezer (freezer-subsystem in the kernel's documentation): it is
//! thawed after the kill. Root inside, and so the arena's PID 1, may freeze again at any time, so each step is repeated
//! until the time limit.

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use leakcheck_sys::open_pidfd;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, openat, unlinkat};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use crate::error::Doing;

/// Pause between two attempts at something that depends on other processes.
pub(crate) const STEP: Duration = Duration::from_millis(5);
/// More than the pids of a cgroup directory take.
const MOST_BYTES: usize = 1 << 20;

/// Thaws a v1 cgroup and all below it; a hierarchy without a freezer has nothing to thaw.
pub(crate) fn thaw(top: &Path) {
    if top.join("freezer.state").exists() {
        each_below(top, &mut |dir| write(dir, "freezer.state", "THAWED"), &mut |_, _| {});
    }
}

/// Sends SIGKILL to all processes in a cgroup and its descendants.
pub(crate) fn kill(top: &Path) {
    let kill_in = &mut |dir: &OwnedFd| {
        let pidfds: Vec<(i32, OwnedFd)> =
            members(dir).into_iter().filter_map(|pid| Some((pid, open_pidfd(pid).ok()?))).collect();
        if pidfds.is_empty() {
            return;
        }
        // Another process may have got the id before it was opened: only current members are killed.
        let still = members(dir);
        for (_, pidfd) in pidfds.iter().filter(|(pid, _)| still.contains(pid)) {
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
    };
    each_below(top, kill_in, &mut |_, _| {});
}

/// Moves a process to a cgroup.
pub(crate) fn move_to(cgroup: &Path, pid: i32) {
    let _ = fs::write(cgroup.join("cgroup.procs"), pid.to_string());
}

/// The processes that are in a cgroup or below it, as `PID (name, state)`.
pub(crate) fn remaining(top: &Path) -> Vec<String> {
    let mut found = Vec::new();
    each_below(top, &mut |dir| found.extend(members(dir)), &mut |_, _| {});
    let described = |pid: i32| {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat);
        let (start, rest) = stat.rsplit_once(')')?;
        Some(format!("{pid} ({}, {})", start.split_once('(')?.1.escape_debug(), rest.trim_start().get(..1)?))
    };
    found.into_iter().filter_map(described).collect()
}

/// Removes a cgroup and its descendants. A directory with an exited process stays until the process is gone. v1 has no
/// event for that, so the removal is repeated until `deadline`. Returns whether it was there.
pub(crate) fn remove(top: &Path, deadline: Instant) -> io::Result<bool> {
    let mut tries = 0;
    loop {
        match fs::remove_dir(top) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            // Most have nothing below them.
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && (tries == 0 || Instant::now() < deadline) => {}
            other => {
                return other.map(|()| true).doing("remove cgroup", top);
            }
        }
        if tries > 0 {
            pause();
        }
        tries += 1;
        each_below(top, &mut |_| {}, &mut |parent, name| {
            let _ = unlinkat(parent, name, AtFlags::REMOVEDIR);
        });
    }
}

pub(crate) fn pause() {
    let time = rustix::event::Timespec::try_from(Duration::from_millis(1)).ok();
    let _ = rustix::event::poll(&mut [], time.as_ref());
}

/// Visits a directory and all below it, each before what is in it and, but for the first, again after: then with its parent. Neither
/// depth nor length of a path is bounded inside, so one descriptor is held.
fn each_below(top: &Path, before: &mut dyn FnMut(&OwnedFd), after: &mut dyn FnMut(&OwnedFd, &CString)) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(mut at) = openat(CWD, top, flags, Mode::empty()) else { return };
    before(&at);
    let mut path: Vec<CString> = Vec::new();
    let mut rest = vec![subdirectories(&at)];
    while let Some(names) = rest.last_mut() {
        if let Some(name) = names.pop() {
            if let Ok(sub) = openat(&at, &name, flags, Mode::empty()) {
                before(&sub);
                rest.push(subdirectories(&sub));
                path.push(name);
                at = sub;
            }
            continue;
        }
        rest.pop();
        let Some(name) = path.pop() else { return };
        let Ok(up) = openat(&at, "..", flags, Mode::empty()) else { return };
        after(&up, &name);
        at = up;
    }
}

fn subdirectories(dir: &OwnedFd) -> Vec<CString> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 8192];
    let mut entries = RawDir::new(dir.as_fd(), &mut buffer[..]);
    let mut names = Vec::new();
    while let Some(Ok(entry)) = entries.next() {
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name.to_owned());
        }
    }
    names
}

fn members(dir: &OwnedFd) -> Vec<i32> {
    let Ok(file) = openat(dir, "cgroup.procs", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else {
        return Vec::new();
    };
    let mut text = Vec::new();
    let mut part = [0u8; 8192];
    while text.len() < MOST_BYTES {
        match rustix::io::read(&file, &mut part) {
            Ok(0) => break,
            Ok(n) => text.extend_from_slice(&part[..n]),
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
    // 0 is a process outside this pid namespace.
    let pids = text.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok()?.parse().ok());
    pids.filter(|pid| *pid > 1).collect()
}

fn write(dir: &OwnedFd, file: &str, text: &str) {
    if let Ok(file) = openat(dir, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        let _ = rustix::io::write(&file, text.as_bytes());
    }
}
