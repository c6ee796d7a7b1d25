//! Lookups besides the looks: clocks, the machine, single processes.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::SystemTime;

use super::proc_root::read_file;
use super::{cgroup, task};
use crate::arena::{ArenaView, proc_path};
use crate::error::Result;
use crate::parse;
use crate::resource::Process;
use crate::text::Text;

pub(crate) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// The clock that file systems use for birth times, which is late by at most one tick (clock_gettime(2),
/// `CLOCK_REALTIME_COARSE`): no file that is created from now on is older, and a file that is at most one tick older
/// looks as new.
pub(crate) fn file_clock_ns() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

/// The time of `CLOCK_REALTIME`, in nanoseconds, of a start in ticks after boot (proc_pid_stat(5)).
pub(crate) fn started_ns(ticks: u64) -> i64 {
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let since_boot = boot.tv_sec.saturating_mul(1_000_000_000).saturating_add(boot.tv_nsec);
    let after_boot = ticks.saturating_mul(1_000_000_000 / rustix::param::clock_ticks_per_second().max(1));
    now_ns().saturating_sub(since_boot).saturating_add(i64::try_from(after_boot).unwrap_or(i64::MAX))
}

pub(crate) fn boot_id() -> Result<String> {
    static BOOT: OnceLock<String> = OnceLock::new();
    if let Some(known) = BOOT.get() {
        return Ok(known.clone());
    }
    let text = read_file("/proc/sys/kernel/random/boot_id")?;
    Ok(BOOT.get_or_init(|| String::from_utf8_lossy(&text).trim().to_owned()).clone())
}

/// Mount points of the cgroup hierarchies.
pub(crate) fn cgroup_mounts() -> Vec<PathBuf> {
    cgroup::hierarchies().map(|all| all.into_iter().map(|h| h.mount).collect()).unwrap_or_default()
}

/// Hierarchy and path of each cgroup of a process, named as in [`crate::resource::Cgroup`].
pub(crate) fn cgroups_of(pid: u32, arena: Option<&ArenaView>) -> Vec<(String, String)> {
    let text = read_file(proc_path(arena, format_args!("{pid}/cgroup"))).unwrap_or_default();
    let name = |e: &parse::cgroup::CgroupEntry<'_>| match e.is_v2() {
        true => "v2".to_owned(),
        false => Text::from(e.controllers).to_string(),
    };
    let entries = parse::cgroup::parse(&text).unwrap_or_default();
    entries.iter().map(|e| (name(e), Text::from(e.path).to_string())).collect()
}

/// Effective user id of a process.
pub(crate) fn uid_of(pid: u32, arena: Option<&ArenaView>) -> Option<u32> {
    let text = read_file(proc_path(arena, format_args!("{pid}/status"))).ok()?;
    parse::status::parse(&text).ok()?.uid.map(|uids| uids[1])
}

/// The process that currently has this id.
pub(crate) fn process(pid: u32, arena: Option<&ArenaView>) -> Option<Process> {
    let mut process = task::process(&read_file(proc_path(arena, format_args!("{pid}/stat"))).ok()?)?;
    if matches!(process.state, 'Z' | 'X' | 'x') {
        // Its first thread may have exited while others run.
        let (thread, first) = task::task_of(pid, arena);
        if !first {
            process.state = task::process(&read_file(proc_path(arena, format_args!("{thread}/stat"))).ok()?)?.state;
        }
    }
    Some(process)
}

/// Minor page faults of a process (proc_pid_stat(5)): they increase with each of its own forks.
pub(crate) fn minor_faults(pid: u32) -> Option<u64> {
    parse::stat::parse(&read_file(format!("/proc/{pid}/stat")).ok()?).ok().map(|stat| stat.minflt)
}

/// How often the first thread of a process has gone to sleep (proc_pid_status(5), `voluntary_ctxt_switches`).
pub(crate) fn sleeps(pid: u32) -> Option<u64> {
    parse::status::parse(&read_file(format!("/proc/{pid}/status")).ok()?).ok()?.voluntary_switches
}

/// The children of a process' first thread, including zombies (proc_tid_children(5)); none if the kernel does not list
/// them. Each entry is read under the lock that fork, exit and reparenting take: when a parent's exit is visible, its
/// children already have their new parent.
pub(crate) fn children(pid: u32, arena: Option<&ArenaView>) -> Option<Vec<u32>> {
    let text = read_file(proc_path(arena, format_args!("{pid}/task/{pid}/children"))).ok()?;
    Some(std::str::from_utf8(&text).ok()?.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect())
}

/// Whether a number is the id of a process and not of a thread, which `/proc` has too but does not list (proc(5)).
pub(crate) fn is_process(pid: u32) -> bool {
    let text = read_file(format!("/proc/{pid}/status")).unwrap_or_default();
    parse::status::parse(&text).is_ok_and(|status| status.tgid == Some(pid.cast_signed()))
}

/// The last id assigned in our pid namespace, to a process or a thread (proc_loadavg(5), the last field).
pub(crate) fn newest_pid() -> Option<u32> {
    let text = read_file("/proc/loadavg").ok()?;
    std::str::from_utf8(&text).ok()?.split_ascii_whitespace().next_back()?.parse().ok()
}
