//! File locks, by `/proc/locks` (proc(5)): one read for the whole machine. In a pid namespace, it omits locks whose
//! taker has no pid there, including those of a dead taker, which a child may have inherited. So there the `lock:`
//! lines of fdinfo are read too.

use std::collections::{HashMap, HashSet};

use super::context::Context;
use super::proc_root::read_file;
use super::process_files::Fdinfo;
use crate::error::in_words;
use crate::kind::Kind;
use crate::parse::nslink::NsType;
use crate::parse::{fdinfo, locks};
use crate::resource::{Fd, Lock, encode_device};
use crate::snapshot::{Level, Snapshot};

/// Inode of the first pid namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const FIRST_PID_NS: u64 = 0xEFFF_FFFC;

/// Whether `/proc/locks` omits locks here, so that [`collect`] needs the descriptors.
pub(crate) fn some_are_hidden(context: Context<'_>, observation: &Snapshot) -> bool {
    context.arena.is_some() || observation.own_ns.get(&NsType::Pid).is_some_and(|ino| *ino != FIRST_PID_NS)
}

/// Appends the locks; outside the host scope those of the scope's processes and of the files that they have open.
pub(crate) fn collect(whole_host: bool, host_devices: Option<&HashSet<u64>>, context: Context<'_>, out: &mut Snapshot) {
    let text = match read_file(context.proc("locks")) {
        Ok(text) => text,
        Err(e) => return out.coverage.lower(Kind::Lock, Level::None, e.to_string()),
    };
    let parsed = match locks::parse(&text) {
        Ok(parsed) => parsed,
        Err(e) => {
            return out.coverage.lower(Kind::Lock, Level::None, format!("cannot read /proc/locks: {}", in_words(e)));
        }
    };
    let files: HashSet<u64> = out.fds.iter().filter(|fd| fd.ino != 0).map(|fd| fd.ino).collect();
    let in_arena = host_devices.map(|shared| {
        // Locks of open file descriptions are listed for the whole machine, all others per pid namespace.
        let open: HashSet<(u64, u64)> = out.fds.iter().filter(|fd| fd.ino != 0).map(|fd| (fd.dev, fd.ino)).collect();
        let devices: HashSet<u64> = out.mounts.iter().map(|m| m.dev).filter(|d| !shared.contains(d)).collect();
        move |pid: i32, dev: u64, ino: u64| pid > 0 || open.contains(&(dev, ino)) || devices.contains(&dev)
    });
    let mut waiters: HashMap<(u64, u64), u32> = HashMap::new();
    let mut found: Vec<Lock> = Vec::new();
    for l in parsed {
        let dev = l.dev.map_or(0, |d| encode_device(d.major, d.minor));
        if l.blocked {
            *waiters.entry((dev, l.inode)).or_default() += 1;
            continue;
        }
        let ours = || u32::try_from(l.pid).is_ok_and(|pid| out.process(pid).is_some()) || files.contains(&l.inode);
        let ours = match &in_arena {
            Some(in_arena) => in_arena(l.pid, dev, l.inode),
            None => whole_host || ours(),
        };
        if !ours {
            continue;
        }
        found.push(record(&l));
    }
    if some_are_hidden(context, out) {
        hidden(context, out, &mut found);
    }
    let mut seen: HashMap<_, u32> = HashMap::new();
    for lock in &mut found {
        let n = seen.entry((lock.class.clone(), lock.dev, lock.ino, lock.start, lock.end, lock.pid)).or_default();
        lock.nth = *n;
        *n += 1;
        lock.waiters = waiters.get(&(lock.dev, lock.ino)).copied().unwrap_or(0);
    }
    out.locks.extend(found);
}

pub(crate) fn record(l: &locks::Lock) -> Lock {
    Lock {
        class: l.kind.as_str().to_ascii_lowercase(),
        dev: l.dev.map_or(0, |d| encode_device(d.major, d.minor)),
        ino: l.inode,
        start: l.start,
        end: l.end,
        pid: i64::from(l.pid),
        nth: 0,
        access: access(l.access).to_owned(),
        waiters: 0,
    }
}

/// Appends the locks of open files whose taker has no pid here. Every descriptor of one open file description has the
/// line; it counts once.
fn hidden(context: Context<'_>, out: &mut Snapshot, found: &mut Vec<Lock>) {
    let key = |l: &Lock| (l.class.clone(), l.dev, l.ino, l.start, l.end);
    let mut known = HashSet::new();
    let mut infos = match Fdinfo::open(context.arena) {
        Ok(infos) => infos,
        Err(e) => return out.coverage.lower(Kind::Lock, Level::Partial, e.to_string()),
    };
    let locked = locked_inodes(out);
    let asked = |fd: &&Fd| fd.ino != 0 && locked.as_ref().is_none_or(|locked| locked.contains(&fd.ino));
    for fd in out.fds.iter().filter(asked) {
        let lines = fdinfo::parse(infos.of(fd)).locks;
        let locks = lines.iter().filter(|l| !l.blocked && l.pid == 0).map(record);
        found.extend(locks.filter(|lock| known.insert(key(lock))));
    }
}

/// The inodes of all locked files of the machine, if the observer sees every lock and only the arena's list is
/// incomplete.
fn locked_inodes(out: &Snapshot) -> Option<HashSet<u64>> {
    if out.own_ns.get(&NsType::Pid) != Some(&FIRST_PID_NS) {
        return None;
    }
    let text = read_file("/proc/locks").ok()?;
    Some(locks::parse(&text).ok()?.iter().map(|l| l.inode).collect())
}

fn access(access: locks::Access) -> &'static str {
    match access {
        locks::Access::Read => "read",
        locks::Access::Write => "write",
        locks::Access::ReadWrite => "read-write",
        locks::Access::Unlocked => "unlocked",
    }
}
