//! Files of processes that need care to read: their own memory, and the fdinfo of many descriptors.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags};

use super::proc_root::{self, read_file};
use super::read::path;
use crate::arena::ArenaView;
use crate::error::{Doing, Result};
use crate::resource::Fd;

/// Which part of a process's own memory to read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    /// `cmdline`.
    Arguments,
    /// `environ`.
    Environment,
}

/// Reads `cmdline` or `environ` of the process whose directory this is; none when it cannot be read.
///
/// Both are pages of the process. If the process has mapped a file there, reading may wait for the file's server
/// forever, so only anonymous memory is read. A thread that waits for such a server may also hold the lock that every
/// reader takes, so another thread of ours reads, with a time limit.
///
/// During an execve(2) a process has neither arguments nor environment, and what was read before is of its old program:
/// then it is read again. If that takes too long, the environment could not be read.
pub(crate) fn read_memory(process: &Path, part: Part) -> Option<Vec<u8>> {
    /// Processes whose memory a thread still waits for.
    static STUCK: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let stuck = || STUCK.lock().unwrap_or_else(PoisonError::into_inner);
    if stuck().contains(process) {
        return None;
    }
    let (answer, read) = sync_channel(1);
    let copy = process.to_owned();
    let reader = move || {
        let read = read_at_once(&copy, part);
        let mut stuck = stuck();
        let _ = answer.send(read);
        stuck.remove(&copy);
    };
    // It ends with this process at the latest: the wait for the lock is killable (proc_pid_cmdline_read(), Linux 5.3).
    if std::thread::Builder::new().name("leakcheck-memory".into()).spawn(reader).is_err() {
        return read_at_once(process, part);
    }
    read.recv_timeout(LOCKED).unwrap_or_else(|_| {
        let mut stuck = stuck();
        let late = read.try_recv();
        if late.is_err() {
            stuck.insert(process.to_owned());
        }
        late.unwrap_or_default()
    })
}

/// How long to wait for the memory of a process.
const LOCKED: Duration = Duration::from_secs(1);

fn read_at_once(process: &Path, part: Part) -> Option<Vec<u8>> {
    let name = match part {
        Part::Arguments => "cmdline",
        Part::Environment => "environ",
    };
    let until = Instant::now() + EXECUTING;
    let range = || range_of(&read_file(process.join("stat")).ok()?, part);
    let mut before = range()?;
    let mut doubts = DOUBTS;
    loop {
        let (from, to) = before;
        let read = if from < to && !is_anonymous(&read_file(process.join("maps")).ok()?, from, to) {
            None
        } else {
            Some(read_file(process.join(name)).ok()?)
        };
        let Some(after) = range() else { return read };
        // Where addresses are not random, the old and the new memory have the same range.
        let length = read.as_ref().map_or(0, Vec::len) as u64;
        let whole = match part {
            // What a file is mapped over is never read: nothing is awaited.
            _ if read.is_none() || before == EMPTY || before == HIDDEN => true,
            // A program may write a longer title there, or a shorter one.
            Part::Arguments => length > 0,
            Part::Environment => length == to.saturating_sub(from),
        };
        let same = before == after && to > 0;
        if same && (whole || doubts == 0) {
            return read;
        }
        if Instant::now() >= until {
            // A title is a name; an environment without its end is none.
            return read.filter(|_| matches!(part, Part::Arguments));
        }
        doubts -= u32::from(same);
        before = after;
        std::thread::sleep(AGAIN);
    }
}

/// How long a process may take to replace its memory: on a busy machine it waits for a CPU, or for memory, in the middle.
const EXECUTING: Duration = Duration::from_millis(500);
const AGAIN: Duration = Duration::from_micros(100);
/// How often what is too short is read again though its range stayed: a process may have given that memory back.
const DOUBTS: u32 = 10;

/// The range of a process that is known to have none.
const EMPTY: (u64, u64) = (1, 1);
/// The range of a process that this one has no right to see.
const HIDDEN: (u64, u64) = (0, 1);

/// Where the part is in the process' memory, by its `stat`: fields 48 to 51 of proc_pid_stat(5), which are 0 during an execve(2).
/// [`HIDDEN`] for readers without permission, to whom field 26 is 1. [`EMPTY`] if it is known to be empty: a kernel thread, a
/// zombie, a process that ends and has given back its memory already. Field 23 is the size of all of it, which an execve(2) never
/// makes 0. While that fills the new stack, each range begins and is empty for an instant (create_elf_tables()); field 26, where
/// the code begins, is still 0 then.
fn range_of(stat: &[u8], part: Part) -> Option<(u64, u64)> {
    const ARG_START: usize = 48;
    const SIZE: usize = 23;
    const START_CODE: usize = 26;
    const PF_KTHREAD: u64 = 0x0020_0000;
    let tail = &stat[stat.iter().rposition(|b| *b == b')')? + 1..];
    let fields: Vec<&str> = std::str::from_utf8(tail).ok()?.split_ascii_whitespace().collect();
    // The name before them is field 2.
    let field = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
    if matches!(*fields.first()?, "Z" | "X" | "x") || field(9)? & PF_KTHREAD != 0 || field(SIZE)? == 0 {
        return Some(EMPTY);
    }
    let at = match part {
        Part::Arguments => ARG_START,
        Part::Environment => ARG_START + 2,
    };
    match (field(START_CODE)?, field(at)?, field(at + 1)?) {
        (0, ..) => Some((0, 0)),
        (1, 0, 0) => Some(HIDDEN),
        (_, from, to) if from == to && to > 0 => Some(EMPTY),
        (_, from, to) => Some((from, to)),
    }
}

/// Whether no file is mapped between two addresses, by the text of `maps` (proc_pid_maps(5)).
fn is_anonymous(maps: &[u8], from: u64, to: u64) -> bool {
    let mapped = |line: &[u8]| {
        // The sixth word is a path, of any bytes.
        let mut words = line.splitn(6, |b| *b == b' ').map(|word| std::str::from_utf8(word).unwrap_or_default());
        let (start, end) = words.next()?.split_once('-')?;
        let [start, end] = [start, end].map(|word| u64::from_str_radix(word, 16));
        let inode = words.nth(3)?;
        Some(start.ok()? < to && end.ok()? > from && inode != "0")
    };
    !maps.split(|b| *b == b'\n').any(|line| mapped(line) == Some(true))
}

/// The fdinfo files of many descriptors, read through one descriptor of `/proc`, the arena's if there is one.
pub(super) struct Fdinfo<'a> {
    proc: Place<'a>,
    text: Vec<u8>,
}

enum Place<'a> {
    Host(OwnedFd),
    Arena(&'a OwnedFd),
}

impl<'a> Fdinfo<'a> {
    pub(super) fn open(arena: Option<&'a ArenaView>) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = match arena {
            Some(arena) => Place::Arena(&arena.proc),
            None => {
                let opened = proc_root::open(Path::new("/proc"), flags);
                Place::Host(opened.doing("open directory", "/proc")?)
            }
        };
        Ok(Fdinfo { proc, text: Vec::new() })
    }

    /// The text; empty when the descriptor is gone.
    pub(super) fn of(&mut self, fd: &Fd) -> &[u8] {
        let name = if fd.table == fd.pid {
            path(&format_args!("{}/fdinfo/{}", fd.pid, fd.fd))
        } else {
            path(&format_args!("{}/task/{}/fdinfo/{}", fd.pid, fd.table, fd.fd))
        };
        self.text.clear();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let proc = match &self.proc {
            Place::Host(proc) => proc,
            Place::Arena(proc) => *proc,
        };
        let Ok(file) = rustix::fs::openat(proc, name.as_c_str(), flags, Mode::empty()) else { return &[] };
        self.text.reserve(16384);
        while let Ok(more @ 1..) = rustix::io::read(&file, spare_capacity(&mut self.text)) {
            // Content longer than a page takes several reads, and the last one is short.
            if more < 2048 {
                break;
            }
            self.text.reserve(16384);
        }
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &[u8] = b"00400000-00401000 r-xp 00000000 fe:00 77 /bin/\xff\n\
7ffc10000000-7ffc10021000 rw-p 00000000 00:00 0                          [stack]\n";

    #[test]
    fn memory_that_a_file_is_mapped_over_is_distinguished_from_a_stack() {
        assert!(is_anonymous(MAPS, 0x7ffc_1000_0010, 0x7ffc_1000_0020));
        assert!(!is_anonymous(MAPS, 0x0040_0ff0, 0x0040_1010));
        assert!(is_anonymous(MAPS, 0x0040_1000, 0x0040_2000));
    }

    #[test]
    fn ones_own_arguments_and_environment_are_read() {
        let own = Path::new("/proc/self");
        assert_eq!(read_memory(own, Part::Arguments), std::fs::read("/proc/self/cmdline").ok());
        assert_eq!(read_memory(own, Part::Environment), std::fs::read("/proc/self/environ").ok());
        assert_eq!(read_memory(Path::new("/proc/0"), Part::Arguments), None);
    }

    #[test]
    fn a_process_that_ends_is_not_taken_for_one_that_executes_a_program() {
        let stat = |size: u64| {
            let fields: Vec<String> =
                (4..=52).map(|n| if n == 23 { size.to_string() } else { "0".to_owned() }).collect();
            format!("7 (bwrap) D {}\n", fields.join(" "))
        };
        // It waits for the other processes of its pid namespace, without memory.
        assert_eq!(range_of(stat(0).as_bytes(), Part::Arguments), Some(EMPTY));
        assert_eq!(range_of(stat(4096).as_bytes(), Part::Arguments), Some((0, 0)));
    }

    #[test]
    fn a_range_that_an_execve_begins_is_not_taken_for_an_empty_one() {
        let stat = |start_code: u64| {
            let field = |n| match n {
                23 => 4096,
                26 => start_code,
                50 | 51 => 0x7ffc_1000_0010,
                _ => 0,
            };
            format!("7 (sh) R {}\n", (4..=52).map(|n| field(n).to_string()).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(range_of(stat(0).as_bytes(), Part::Environment), Some((0, 0)));
        assert_eq!(range_of(stat(0x0040_0000).as_bytes(), Part::Environment), Some(EMPTY));
    }

    #[test]
    fn a_process_that_executes_programs_all_the_time_has_its_environment_whenever_it_is_read() {
        executes_all_the_time(&[]);
    }

    #[test]
    fn where_addresses_are_not_random_too_it_has_its_environment_whenever_it_is_read() {
        executes_all_the_time(&["setarch", "-R"]);
    }

    fn executes_all_the_time(before: &[&str]) {
        let _root = proc_root::ProcRoot::renew();
        let again = r#"exec sh -c "$1" sh "$1""#;
        let mut command = std::process::Command::new("env");
        command.args(before).args(["sh", "-c", again, "sh", again]);
        // Larger than what one read(2) takes.
        let mut child = command.env("LARGE", "x".repeat(20000)).env("LEAKCHECK_TEST", "here").spawn().unwrap();
        let process = std::path::PathBuf::from(format!("/proc/{}", child.id()));
        let marked = |text: &[u8]| text.split(|b| *b == 0).any(|entry| entry == b"LEAKCHECK_TEST=here");
        let read = || {
            let began = Instant::now();
            let read = read_memory(&process, Part::Environment).map(|text| (marked(&text), text));
            // A process that gets no CPU in the middle of an execve(2) is one that could not be read.
            (read.is_some() || began.elapsed() < EXECUTING).then_some(read)
        };
        let read = (0..5000).filter_map(|_| read());
        let missed: Vec<_> = read.filter(|read| !matches!(read, Some((true, _)))).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        let missed: Vec<_> = missed.iter().map(|read| read.as_ref().map(|(_, text)| text.len())).collect();
        assert_eq!(missed, [], "the lengths of what was read without the mark");
    }

    #[test]
    fn a_process_without_environment_is_not_taken_for_one_that_executes_a_program() {
        let mut command = std::process::Command::new("sleep");
        let mut child = command.arg("60").env_clear().spawn().unwrap();
        let process = std::path::PathBuf::from(format!("/proc/{}", child.id()));
        let range = || range_of(&std::fs::read(process.join("stat")).unwrap(), Part::Environment);
        // It executes sleep until its arguments are those.
        while read_memory(&process, Part::Arguments).is_none_or(|text| !text.starts_with(b"sleep")) {}
        let (read, alive) = (read_memory(&process, Part::Environment), range());
        child.kill().unwrap();
        let killed = rustix::process::Pid::from_child(&child);
        let ended = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(killed), ended).unwrap();
        let zombie = range();
        child.wait().unwrap();
        assert_eq!((read, alive, zombie), (Some(Vec::new()), Some(EMPTY), Some(EMPTY)));
    }
}
