//! What is needed to tell the call stack of a stopped thread: registers, stack bytes, and the programs that it executes.
//!
//! Names are looked up by the owner, from copies: the thread's end takes away what only it can reach, such as a program in a
//! memory file.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;

use leakcheck_parse::text::Text;
use leakcheck_sys::trace::{Registers, read_memory, registers};
use serde_json::{Value, json};

use super::Run;
use super::object::is_slow;
use super::points::without_root;

/// Where bytes are in the log; the lines before them end far earlier.
const BYTES: u64 = 1 << 26;
/// Bytes of a stack that are kept.
const STACK: u64 = 256 << 10;
/// Bytes of a program that are kept, and of all of a process's.
const PROGRAM: u64 = 64 << 20;
const PROGRAMS: u64 = 256 << 20;
/// Executable mappings that are looked at, and bytes of the list of all.
const MAPPINGS: usize = 256;
const LIST: u64 = 4 << 20;

/// Adds them to the log, at the first fault of a run that is to be explained.
pub(super) fn record(run: &mut Run, pid: i32) {
    if !run.request.explain || std::mem::replace(&mut run.stacked, true) {
        return;
    }
    let found = if run.listener.is_some() { blocked(pid, run.reporting) } else { registers(pid) };
    let registers = match found {
        Ok(Some(registers)) => registers,
        Ok(None) => {
            return run.note(&json!({"note": "the call stack of a process that executes 32-bit code is not walked"}));
        }
        Err(_) => return,
    };
    let mut list = String::new();
    let read = File::open(format!("/proc/{pid}/maps")).map(|file| file.take(LIST).read_to_string(&mut list));
    if !matches!(read, Ok(Ok(_))) {
        return;
    }
    let mappings: Vec<Mapping<'_>> = list.lines().filter_map(Mapping::parse).collect();
    let mut end = BYTES;
    let stack = stack_of(registers, &mappings, pid);
    let at = keep(&run.log, &mut end, &stack);
    let reads = !is_slow(pid);
    let mut known: HashMap<(&str, &str), Option<(u64, u64)>> = HashMap::new();
    let mut lines = Vec::new();
    for one in mappings.iter().filter(|one| one.executable).take(MAPPINGS) {
        let copied = if reads && one.inode != "0" {
            *known.entry((one.device, one.inode)).or_insert_with(|| copy(&run.log, &mut end, pid, one))
        } else {
            None
        };
        lines.push(one.line(copied));
    }
    run.note(&json!({
        "stack": {"pc": registers.pc, "sp": registers.sp, "fp": registers.fp, "at": at, "size": stack.len()},
        "mappings": lines,
    }));
}

/// Registers of a thread of the process that waits in a call, as far as they are shown without a trace (`proc_pid_syscall(5)`).
fn blocked(process: i32, thread: i32) -> io::Result<Option<Registers>> {
    let text = fs::read_to_string(format!("/proc/{process}/task/{thread}/syscall"))?;
    let mut words = text.split_ascii_whitespace().rev();
    let mut number = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    let (Some(pc), Some(sp)) = (number(), number()) else { return Err(io::ErrorKind::WouldBlock.into()) };
    // Code of 32 bits has its stack below 4 GiB.
    Ok((sp > u64::from(u32::MAX)).then_some(Registers { pc, sp, fp: 0 }))
}

struct Mapping<'a> {
    start: u64,
    end: u64,
    executable: bool,
    offset: u64,
    device: &'a str,
    inode: &'a str,
    path: &'a str,
}

impl<'a> Mapping<'a> {
    /// A line of proc_pid_maps(5).
    fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        let (start, end) = words.next()?.split_once('-')?;
        let (mode, offset, device, inode) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let number = |text| u64::from_str_radix(text, 16).ok();
        let path = words.next().unwrap_or_default().trim_start();
        let (start, end, offset) = (number(start)?, number(end)?, number(offset)?);
        Some(Mapping { start, end, executable: mode.contains('x'), offset, device, inode, path })
    }

    fn line(&self, copied: Option<(u64, u64)>) -> Value {
        let path = Text::from(without_root(self.path.as_bytes().to_vec()));
        let (at, size) = copied.unwrap_or_default();
        json!({"start": self.start, "end": self.end, "offset": self.offset, "path": path, "at": at, "size": size})
    }
}

fn stack_of(registers: Registers, mappings: &[Mapping<'_>], pid: i32) -> Vec<u8> {
    let Some(of) = mappings.iter().find(|one| (one.start..one.end).contains(&registers.sp)) else { return Vec::new() };
    let size = (of.end - registers.sp).min(STACK);
    let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
    let read = read_memory(pid, registers.sp, &mut bytes).unwrap_or(0);
    bytes.truncate(read);
    bytes
}

fn keep(log: &File, end: &mut u64, bytes: &[u8]) -> u64 {
    let at = *end;
    *end += bytes.len() as u64;
    let _ = log.write_all_at(bytes, at);
    at
}

/// Copies a mapped file, also one that has no path any more; returns where its bytes are, and how many.
fn copy(log: &File, end: &mut u64, pid: i32, one: &Mapping<'_>) -> Option<(u64, u64)> {
    let mut file = File::open(format!("/proc/{pid}/map_files/{:x}-{:x}", one.start, one.end)).ok()?;
    let size = file.metadata().ok().filter(fs::Metadata::is_file)?.len();
    if size > PROGRAM || *end - BYTES + size > PROGRAMS {
        return None;
    }
    let at = *end;
    let mut part = vec![0; 1 << 18];
    while *end - at < size
        && let Ok(count) = file.read(&mut part)
        && count > 0
    {
        keep(log, end, &part[..count]);
    }
    Some((at, *end - at))
}

#[cfg(test)]
mod tests {
    use super::Mapping;

    #[test]
    fn a_path_may_hold_spaces_and_a_line_may_lack_it() {
        let line = "55d0c000-55d0d000 r-xp 00002000 fe:01 1234                       /tmp/a b (deleted)";
        let one = Mapping::parse(line).unwrap();
        assert_eq!(
            (one.start, one.offset, one.executable, one.path),
            (0x55d0_c000, 0x2000, true, "/tmp/a b (deleted)")
        );
        assert_eq!(Mapping::parse("7f00-7f01 rw-p 00000000 00:00 0 ").unwrap().path, "");
        assert!(Mapping::parse("hostile").is_none());
    }
}
