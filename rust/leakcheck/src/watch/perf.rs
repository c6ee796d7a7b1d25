//! Every fork and exit by perf_event_open(2): the same as the process connector, where the connector is silent, such as
//! in a pid namespace.
//!
//! Facts from `kernel/events/core.c`: an event of a CPU (`pid` −1) with the bit `task` records each fork and exit
//! there, before the child runs and before the parent is notified of the exit. Ids are those of the opener's pid
//! namespace, 0 for a process outside it. The parent is the caller, unlike in the connector's events. Needs
//! `CAP_PERFMON` or `CAP_SYS_ADMIN` in the initial user namespace.

use std::fs;

use rustix::io::Errno;

use super::connector::Event;
use super::sys::Ring;
use crate::error::in_words;
use crate::own_fd::OwnFd;

/// `struct perf_event_attr`, `include/uapi/linux/perf_event.h`, in 32-bit words, the low half of 64-bit fields first.
const ATTR: usize = 32;
const PERF_TYPE_SOFTWARE: u32 = 1;
const PERF_COUNT_SW_DUMMY: u32 = 9;
const TASK: u32 = 1 << 13;
const WATERMARK: u32 = 1 << 14;
const USE_CLOCKID: u32 = 1 << 25;
const CLOCK_MONOTONIC: u32 = 1;

const PERF_RECORD_EXIT: u32 = 4;
const PERF_RECORD_FORK: u32 = 7;

/// Pages of a CPU's ring; the first size that the kernel accepts is used. 2 MiB hold 65,536 forks and exits, since the
/// reader may have to wait for a CPU. Without `CAP_IPC_LOCK`, the default limit for locked memory
/// (`perf_event_mlock_kb`, 516) allows only 256 KiB.
const PAGES: [usize; 2] = [512, 64];
/// At least the size of the longest record of these events. A ring with less free space than this may have lost one.
const NEARLY: u64 = 128;
/// Passes over the rings in one reading. Two are enough, unless a CPU is delayed between stamping and publishing a
/// record.
const PASSES: usize = 16;

/// One event per CPU.
pub(super) struct Perf {
    rings: Vec<Ring>,
    /// The CPUs in the kernel's notation.
    online: String,
    /// Events that were read, but may be newer than something that is not read yet.
    waiting: Vec<Event>,
    lost: Option<&'static str>,
}

impl Perf {
    /// Opens an event on each CPU. The error is the reason for the fallback.
    pub(super) fn open() -> Result<Perf, String> {
        if cfg!(target_endian = "big") {
            return Err("perf events: not supported on a big-endian machine".to_owned());
        }
        let online = online().ok_or("perf events: cannot read the list of CPUs")?;
        let cpus = cpus(&online).ok_or("perf events: the list of CPUs has an unknown format")?;
        let rings = |pages| cpus.iter().map(|cpu| Ring::open(&attr(pages), *cpu, pages)).collect::<Result<_, _>>();
        let [large, small] = PAGES;
        Ok(Perf {
            rings: rings(large).or_else(|_| rings(small)).map_err(refused)?,
            online,
            waiting: Vec::new(),
            lost: None,
        })
    }

    /// Reads every event that was raised before the call, in an order in which no event precedes its cause.
    ///
    /// Each CPU has its own queue. Clocks agree, so a cause has the earlier time stamp, but it may be in a queue that
    /// was read before the cause arrived. If another pass finds nothing older than the newest event of the previous
    /// passes, nothing is missing.
    pub(super) fn read(&mut self, mut take: impl FnMut(Event)) {
        self.collect();
        let Some(newest) = self.waiting.iter().map(Event::at).max() else { return };
        let mut settled = false;
        for _ in 1..PASSES {
            let before = self.waiting.len();
            self.collect();
            settled = self.waiting[before..].iter().all(|event| event.at() > newest);
            if settled {
                break;
            }
        }
        if !settled {
            self.lost = Some("perf events: the order of events is unknown");
        }
        self.waiting.sort_by_key(Event::at);
        let known = self.waiting.partition_point(|event| event.at() <= newest);
        self.waiting.drain(..known).for_each(&mut take);
        if online().as_ref() != Some(&self.online) {
            self.lost = Some("perf events: the set of CPUs changed");
        }
    }

    fn collect(&mut self) {
        for ring in &mut self.rings {
            let bytes = ring.take();
            if bytes.len() as u64 + NEARLY > ring.size() {
                self.lost = Some("perf events: a buffer overflowed");
            }
            parse(&bytes, &mut self.waiting);
        }
    }

    /// Why events are missing, if any are.
    pub(super) fn lost(&self) -> Option<&'static str> {
        self.lost
    }

    /// The events' FDs, readable when there is something to read.
    pub(super) fn sources(&self) -> impl Iterator<Item = &OwnFd> {
        self.rings.iter().map(Ring::event)
    }
}

fn attr(pages: usize) -> [u32; ATTR] {
    let mut attr = [0; ATTR];
    attr[0] = PERF_TYPE_SOFTWARE;
    attr[1] = size_of_val(&attr) as u32;
    attr[2] = PERF_COUNT_SW_DUMMY;
    attr[10] = TASK | WATERMARK | USE_CLOCKID;
    attr[12] = (pages * 4096 / 4) as u32; // wakeup_watermark, in bytes
    attr[23] = CLOCK_MONOTONIC; // clockid
    attr
}

fn refused(errno: Errno) -> String {
    match errno {
        Errno::ACCESS | Errno::PERM => {
            "perf events: CAP_PERFMON in the initial user namespace is missing, or a seccomp filter forbids them"
                .to_owned()
        }
        Errno::NOSYS => "perf events: the kernel is built without them".to_owned(),
        other => format!("perf events: perf_event_open: {}", in_words(other)),
    }
}

fn online() -> Option<String> {
    fs::read_to_string("/sys/devices/system/cpu/online").ok()
}

/// Reads a list of CPUs such as `0-3,8`.
fn cpus(list: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// Reads records: `perf_event_header` {type, misc, size}, then for both pid, ppid, tid, ptid and time.
fn parse(mut bytes: &[u8], events: &mut Vec<Event>) {
    let u32_at = |bytes: &[u8], at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let size_of = |bytes: &[u8]| Some(usize::from(u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?)));
    while let Some((record, rest)) = size_of(bytes).filter(|n| *n >= 8).and_then(|n| bytes.split_at_checked(n)) {
        bytes = rest;
        let event = || {
            let (pid, ppid, tid) = (u32_at(record, 8)?, u32_at(record, 12)?, u32_at(record, 16)?);
            let at = u64::from_ne_bytes(record.get(24..32)?.try_into().ok()?);
            let known = |id: u32| i32::try_from(id).is_ok_and(|id| id > 0);
            match u32_at(record, 0)? {
                _ if !known(pid) || !known(tid) => None,
                PERF_RECORD_FORK => Some(Event::Fork { at, parent_tgid: ppid, child_pid: tid, child_tgid: pid }),
                PERF_RECORD_EXIT => Some(Event::Exit { at, pid: tid, tgid: pid, parent_tgid: 0 }),
                _ => None,
            }
        };
        events.extend(event());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(what: u32, ids: [i32; 4], at: u64) -> Vec<u8> {
        let mut bytes = what.to_ne_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(32u16.to_ne_bytes());
        ids.iter().for_each(|id| bytes.extend(id.to_ne_bytes()));
        bytes.extend(at.to_ne_bytes());
        bytes
    }

    fn parsed(bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        parse(bytes, &mut events);
        events
    }

    #[test]
    fn forks_of_processes_and_threads_and_exits_are_distinguished() {
        let bytes = [
            record(PERF_RECORD_FORK, [20, 10, 20, 11], 5),
            record(PERF_RECORD_FORK, [20, 20, 21, 20], 6),
            record(PERF_RECORD_EXIT, [20, 10, 21, 10], 7),
        ];
        let expected = [
            Event::Fork { at: 5, parent_tgid: 10, child_pid: 20, child_tgid: 20 },
            Event::Fork { at: 6, parent_tgid: 20, child_pid: 21, child_tgid: 20 },
            Event::Exit { at: 7, pid: 21, tgid: 20, parent_tgid: 0 },
        ];
        assert_eq!(parsed(&bytes.concat()), expected);
    }

    #[test]
    fn who_is_outside_the_pid_namespace_makes_no_event() {
        assert_eq!(parsed(&record(PERF_RECORD_FORK, [0, 0, 0, 0], 5)), []);
        assert_eq!(parsed(&record(PERF_RECORD_EXIT, [-1, 0, -1, 0], 5)), []);
        let entered = parsed(&record(PERF_RECORD_FORK, [20, 0, 20, 0], 5));
        assert_eq!(entered, [Event::Fork { at: 5, parent_tgid: 0, child_pid: 20, child_tgid: 20 }]);
    }

    #[test]
    fn truncated_and_unknown_records_are_no_events() {
        let fork = record(PERF_RECORD_FORK, [20, 10, 20, 11], 5);
        for end in 0..fork.len() {
            assert_eq!(parsed(&fork[..end]), [], "cut at {end}");
        }
        assert_eq!(parsed(&[record(99, [1, 1, 1, 1], 1), fork].concat()).len(), 1);
        assert_eq!(parsed(&[0; 64]), []);
    }

    #[test]
    fn a_list_of_cpus_has_ranges() {
        assert_eq!(cpus("0-3,8,10-11\n"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(cpus("0"), Some(vec![0]));
        assert_eq!(cpus("x"), None);
    }
}
