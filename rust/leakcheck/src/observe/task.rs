//! One process or thread, by its directory in `/proc` (proc(5)).

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, RawDir};

use super::proc_root::{self, read_file};
use super::read::{path, read_small};
use crate::arena::{ArenaView, proc_path};
use crate::parse;
use crate::parse::nslink::NsType;
use crate::resource::Process;
use crate::text::Text;

/// Kernel threads carry this flag (`PF_KTHREAD`, include/linux/sched.h).
pub(super) const PF_KTHREAD: u32 = 0x0020_0000;

/// A thread that has not ended, with its state: below the `/proc/PID` whose first thread has.
pub(super) fn living_thread(dir: BorrowedFd<'_>, pid: u32) -> Option<(u32, u8)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let task = rustix::fs::openat(dir, c"task", flags, Mode::empty()).ok()?;
    let mut tids = Vec::new();
    each_number(task.as_fd(), |tid, _| tids.push(tid)).ok()?;
    tids.into_iter().filter(|tid| *tid != pid).find_map(|tid| {
        let mut buffer = [0u8; 1024];
        let text = read_small(task.as_fd(), &path(&format_args!("{tid}/stat")), &mut buffer).ok()?;
        let state = parse::stat::parse(text).ok()?.state;
        (!matches!(state, b'Z' | b'X' | b'x')).then_some((tid, state))
    })
}

/// The directory below `/proc` that shows a process's resources: its first thread's, or a living thread's if the first
/// has exited; and whether the first lives.
pub(crate) fn task_of(pid: u32, arena: Option<&ArenaView>) -> (String, bool) {
    let text = read_file(proc_path(arena, format_args!("{pid}/stat"))).unwrap_or_default();
    if parse::stat::parse(&text).is_ok_and(|s| matches!(s.state, b'Z' | b'X' | b'x') && s.num_threads > 1) {
        let dir = proc_root::open(&proc_path(arena, pid), OFlags::PATH | OFlags::DIRECTORY);
        if let Some((tid, _)) = dir.ok().and_then(|dir| living_thread(dir.as_fd(), pid)) {
            return (format!("{pid}/task/{tid}"), false);
        }
    }
    (pid.to_string(), true)
}

/// The process of a `/proc/PID/stat`; none for a kernel thread.
pub(super) fn process(stat: &[u8]) -> Option<Process> {
    let stat = parse::stat::parse(stat).ok()?;
    (stat.flags & PF_KTHREAD == 0).then(|| process_of(&stat))
}

pub(super) fn process_of(stat: &parse::stat::Stat<'_>) -> Process {
    Process {
        pid: stat.pid.unsigned_abs(),
        start: stat.start_time,
        ppid: stat.ppid.unsigned_abs(),
        state: stat.state as char,
        pgrp: stat.pgrp,
        session: stat.session,
        comm: Text::from(stat.comm),
    }
}

/// Calls `f` with each entry of `dir` whose name is a number.
pub(super) fn each_number(dir: BorrowedFd<'_>, mut f: impl FnMut(u32, &CStr)) -> rustix::io::Result<()> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 16384];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(number) = number(name.to_bytes()) {
            f(number, name);
        }
    }
    Ok(())
}

fn number(name: &[u8]) -> Option<u32> {
    if name.is_empty() || name.len() > 10 {
        return None;
    }
    name.iter().try_fold(0u32, |n, b| {
        let digit = b.wrapping_sub(b'0');
        (digit < 10).then(|| n.checked_mul(10)?.checked_add(u32::from(digit))).flatten()
    })
}

/// The namespaces of the observer itself.
pub(super) fn own_namespaces() -> std::collections::BTreeMap<NsType, u64> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(dir) = proc_root::open(Path::new("/proc/thread-self/ns"), flags) else { return Default::default() };
    let links = ["mnt", "net", "ipc", "pid", "user", "uts", "cgroup", "time"].into_iter().filter_map(|name| {
        let link = rustix::fs::readlinkat(&dir, name, Vec::with_capacity(32)).ok()?;
        parse::nslink::parse(link.as_bytes()).ok()
    });
    links.collect()
}
