//! What a traced call is, in words that are the same in every run: its operation and what it operates on.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

use leakcheck_sys::open_pidfd;
use leakcheck_sys::trace::{Call, read_memory};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use super::notify::threads;
use super::status::activity;
use super::x86_64::{EXIT, I386, NATIVE, Names, Row, THREAD, UNTRACED, WRITES, X32, direct, rows, watched};

/// More of a path is not looked at (`PATH_MAX`).
const LONGEST: usize = 4096;
/// Characters of a class, at most.
const CLASS: usize = 72;
/// Characters that mktemp(1) and mkdtemp(3) draw, at least; as a suffix after a dot or a number, exactly.
const RANDOM: usize = 6;
/// More arguments of a program are not compared.
const MOST_ARGUMENTS: usize = 64;

/// A call that changes what is seen from outside.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Point {
    pub(super) operation: &'static str,
    /// Empty if nothing tells its calls apart.
    pub(super) class: String,
}

impl Point {
    /// Whether there is an instant after it: a process that has ended has none.
    pub(super) fn returns(&self) -> bool {
        self.operation != "exit"
    }
}

/// What a thread that stopped at a call is about to do.
#[derive(Debug, Default)]
pub(super) struct Described {
    /// `None` if nothing outside changes.
    pub(super) point: Option<Point>,
    /// Where the clone flags are, and these without `CLONE_UNTRACED`, if it has this one.
    pub(super) untraced: Option<(Flags, u64)>,
    /// The threads that end by it.
    pub(super) leaving: Vec<i32>,
}

/// Where the flags of a clone are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Flags {
    /// In the first argument.
    Argument,
    Memory(u64),
}

/// With `every`, calls are points that are none otherwise. `process` is that of the thread `pid`; the threads `leaving` are
/// about to end.
pub(super) fn describe(pid: i32, process: i32, call: &Call, every: bool, leaving: &HashSet<i32>) -> Described {
    let mut found = Described::default();
    let call = &direct(call, |address| word_at(pid, address));
    let Some(row) = rows(call, every).find(|row| row.when.holds(&call.arguments)) else { return found };
    let mut operation = row.operation;
    let mut class = class(pid, row, &call.arguments);
    if let Names::Written(at) = row.names {
        match leads_to(pid, process, call.arguments[at]) {
            Some(To::File(path)) => class = path,
            Some(To::Socket(domain)) => {
                class = domain.to_owned();
                operation = if operation == "write" { "send" } else { operation };
            }
            None => return found,
        }
    }
    match operation {
        "clone" if row.number == 435 || row.number == 56 => {
            let in_memory = row.number == 435;
            let flags = if in_memory { number_at(pid, call.arguments[0]) } else { call.arguments[0] };
            if flags & UNTRACED != 0 {
                let place = if in_memory { Flags::Memory(call.arguments[0]) } else { Flags::Argument };
                found.untraced = Some((place, flags & !UNTRACED));
            }
            if flags & u64::from(THREAD) != 0 {
                return found;
            }
            class = namespaces(flags);
        }
        "exit" => {
            let all = threads(process);
            let last = all.iter().all(|one| *one == pid || leaving.contains(one) || activity(*one).is_none());
            // Of threads that end at the same time, one is the point: whose call is handled last, or ends all of them.
            if leaving.contains(&pid) || (row.number == EXIT && !last) {
                found.leaving = vec![pid];
                return found;
            }
            found.leaving = all;
        }
        "unlink" if row.names == Names::At(0, 1) && call.arguments[2] & 0x200 != 0 => operation = "rmdir",
        // The flags are in memory.
        "open" if row.number == 437 && number_at(pid, call.arguments[2]) & u64::from(WRITES) == 0 => return found,
        "open" if matches!(class.as_str(), "/dev/null" | "/dev/zero" | "/dev/full" | "/dev/tty" | "/dev/ptmx") => {
            return found;
        }
        // Go's scheduler sends it to its own process, at any time.
        "kill" if class == "SIGURG" => return found,
        // Of other levels, the number means something else.
        "setsockopt" if !matches!(call.arguments[1], 0 | 41) => return found,
        "shmctl" | "msgctl" | "semctl" if !is_removal(operation, &call.arguments) => class = "set".to_owned(),
        "prctl" => class = if call.arguments[0] == 1 { "pdeathsig" } else { "subreaper" }.to_owned(),
        _ => {}
    }
    found.point = Some(Point { operation, class });
    found
}

/// Whether a call creates a process or a thread, or ends one: its operation.
pub(super) fn creates_or_ends(pid: i32, call: &Call) -> Option<&'static str> {
    let call = &direct(call, |address| word_at(pid, address));
    let row = rows(call, false).find(|row| row.when.holds(&call.arguments))?;
    matches!(row.operation, "clone" | "exit").then_some(row.operation)
}

/// The point of a call that only faults are at. Programs and settings that are closed were only read.
pub(super) fn describe_watched(pid: i32, call: &Call) -> Option<Point> {
    let row = watched(call)?;
    let Names::Descriptor(at) = row.names else {
        return Some(Point { operation: row.operation, class: String::new() });
    };
    #[allow(clippy::cast_possible_truncation, reason = "descriptors are ints")]
    let path = link(pid, &format!("fd/{}", call.arguments[at] as u32));
    let read: [&[u8]; 4] = [b"/usr/", b"/lib", b"/etc/", b"/proc/"];
    if path.is_empty() || read.iter().any(|one| path.starts_with(one)) {
        return None;
    }
    let class = if path.starts_with(b"/") {
        normal(&path)
    } else {
        // pipe:[17], anon_inode:[eventpoll]
        let what = path.strip_prefix(b"anon_inode:").unwrap_or(&path);
        normal(what.split(|byte| *byte == b':').next().unwrap_or_default()).trim_matches('_').to_owned()
    };
    Some(Point { operation: row.operation, class })
}

/// Whether the program that a thread is about to execute has exactly these arguments.
pub(super) fn executes(pid: i32, call: &Call, argv: &[String]) -> bool {
    let at = match (call.arch, call.number & !u64::from(X32)) {
        (NATIVE, 59) | (I386, 11) => 1,
        (NATIVE, 322) | (I386, 358) => 2,
        _ => return false,
    };
    if argv.is_empty() || argv.len() > MOST_ARGUMENTS {
        return false;
    }
    let pointer = |n: usize| match call.arch {
        I386 => u64::from(word_at(pid, call.arguments[at] + 4 * n as u64)),
        _ => number_at(pid, call.arguments[at] + 8 * n as u64),
    };
    argv.iter().enumerate().all(|(n, expected)| {
        let address = pointer(n);
        address != 0 && string_at(pid, address, expected.len() + 1) == expected.as_bytes()
    }) && pointer(argv.len()) == 0
}

fn class(pid: i32, row: &Row, arguments: &[u64; 6]) -> String {
    match row.names {
        Names::Nothing | Names::Written(_) => String::new(),
        Names::Path(at) => normal(&path(pid, None, arguments[at])),
        Names::At(dir, at) => normal(&path(pid, Some(arguments[dir]), arguments[at])),
        Names::Descriptor(at) => normal(&link(pid, &format!("fd/{}", arguments[at]))),
        Names::Signal(at) => signal(arguments[at]),
        Names::Namespaces(at) => namespaces(arguments[at]),
    }
}

/// The absolute path that an argument names.
pub(super) fn path(pid: i32, dir: Option<u64>, address: u64) -> Vec<u8> {
    let name = string_at(pid, address, LONGEST);
    if name.starts_with(b"/") {
        return name;
    }
    // Descriptors are ints; AT_FDCWD is negative.
    #[allow(clippy::cast_possible_truncation, reason = "descriptors are ints")]
    let base = match dir.map(|fd| fd as u32 as i32) {
        Some(fd) if fd >= 0 => link(pid, &format!("fd/{fd}")),
        _ => link(pid, "cwd"),
    };
    if name.is_empty() { base } else { [&base[..], b"/", &name].concat() }
}

pub(super) fn link(pid: i32, name: &str) -> Vec<u8> {
    without_root(link_text(&format!("/proc/{pid}/{name}")))
}

/// A path as the arena's root shows it, of one that a link of its processes shows here.
pub(super) fn without_root(to: Vec<u8>) -> Vec<u8> {
    match ROOT.get().and_then(|root| to.strip_prefix(&root[..])) {
        Some([]) => b"/".to_vec(),
        Some(below) if below[0] == b'/' => below.to_vec(),
        _ => to,
    }
}

fn link_text(path: &str) -> Vec<u8> {
    std::fs::read_link(path).map(|to| to.as_os_str().as_bytes().to_vec()).unwrap_or_default()
}

/// The arena's root as links of its processes show it here: in a chroot, it is below that of its mount namespace.
static ROOT: OnceLock<Vec<u8>> = OnceLock::new();

/// Says which directory is the arena's root, and who its init is.
pub(crate) fn set_root(root: BorrowedFd<'_>, init: i32) {
    let _ = ROOT.set(link_text(&format!("/proc/self/fd/{}", root.as_raw_fd())));
    if let Ok(top) = root.try_clone_to_owned() {
        let _ = TOP.set((top, init));
    }
}

/// The arena's root, and its init.
pub(super) static TOP: OnceLock<(OwnedFd, i32)> = OnceLock::new();

/// Where something goes that is written.
enum To {
    /// A path, as in a class.
    File(String),
    /// The domain of the socket.
    Socket(&'static str),
}

/// Where a descriptor leads to, if that is outside: not to a pipe, to a terminal, or to the output of the command, which is a
/// memory file.
fn leads_to(pid: i32, process: i32, fd: u64) -> Option<To> {
    let path = link(pid, &format!("fd/{fd}"));
    if path.starts_with(b"socket:") {
        return Some(To::Socket(domain(process, fd).unwrap_or("socket")));
    }
    let nowhere: [&[u8]; 6] = [b"/memfd:", b"/dev/null", b"/dev/zero", b"/dev/full", b"/dev/tty", b"/dev/pts/"];
    (path.starts_with(b"/") && !nowhere.iter().any(|one| path.starts_with(one))).then(|| To::File(normal(&path)))
}

/// The domain of a traced process's socket.
fn domain(process: i32, fd: u64) -> Option<&'static str> {
    let pidfd = open_pidfd(process).ok()?;
    let ours = pidfd_getfd(&pidfd, i32::try_from(fd).ok()?, PidfdGetfdFlags::empty()).ok()?;
    Some(match i32::from(rustix::net::sockopt::socket_domain(&ours).ok()?.as_raw()) {
        libc::AF_UNIX => "unix",
        libc::AF_INET => "inet",
        libc::AF_INET6 => "inet-six",
        libc::AF_NETLINK => "netlink",
        libc::AF_PACKET => "packet",
        libc::AF_VSOCK => "vsock",
        libc::AF_ALG => "alg",
        _ => "socket",
    })
}

/// Whether a call to a SysV object removes it (`IPC_RMID`).
fn is_removal(operation: &str, arguments: &[u64; 6]) -> bool {
    let command = if operation == "semctl" { arguments[2] } else { arguments[1] };
    matches!(command, 0 | 0x100)
}

/// A string in a traced process's memory, up to its zero byte or `most` bytes. It may cross pages, of which a later one may
/// not be readable.
pub(super) fn string_at(pid: i32, address: u64, most: usize) -> Vec<u8> {
    const PAGE: u64 = 4096;
    let mut found = Vec::new();
    let mut part = [0u8; PAGE as usize];
    while found.len() < most {
        let at = address.wrapping_add(found.len() as u64);
        let to_page = usize::try_from(PAGE - at % PAGE).unwrap_or(1);
        let wanted = to_page.min(most - found.len());
        let Ok(count) = read_memory(pid, at, &mut part[..wanted]) else { break };
        if let Some(end) = part[..count].iter().position(|byte| *byte == 0) {
            found.extend_from_slice(&part[..end]);
            break;
        }
        found.extend_from_slice(&part[..count]);
        if count < wanted {
            break;
        }
    }
    found
}

pub(super) fn word_at(pid: i32, address: u64) -> u32 {
    let mut bytes = [0u8; 4];
    match read_memory(pid, address, &mut bytes) {
        Ok(4) => u32::from_ne_bytes(bytes),
        _ => 0,
    }
}

pub(super) fn number_at(pid: i32, address: u64) -> u64 {
    bytes_at(pid, address, 8).try_into().map_or(0, u64::from_ne_bytes)
}

/// What is at an address of a traced process's memory; less if not all of it can be read.
pub(super) fn bytes_at(pid: i32, address: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    let read = read_memory(pid, address, &mut bytes).unwrap_or(0);
    bytes.truncate(read);
    bytes
}

/// A path without what differs from run to run: words with digits, and what mktemp and tempfile draw, are `N`. Characters
/// that separate the parts of a plan are `_`; of a long path, the end stays.
fn normal(path: &[u8]) -> String {
    let mut text = String::new();
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    // The kernel draws no names.
    let drawn = !(path.starts_with(b"/sys/") || path.starts_with(b"/proc/"));
    let mut rest = path;
    while let Some(first) = rest.first() {
        if is_word(first) {
            let end = rest.iter().position(|byte| !is_word(byte)).unwrap_or(rest.len());
            let (word, behind) = rest.split_at(end);
            let suffix = drawn && word.len() == RANDOM && (text.ends_with('.') || text.ends_with("N-"));
            text.push_str(if suffix || varies(word) { "N" } else { std::str::from_utf8(word).unwrap_or("_") });
            rest = behind;
        } else {
            text.push(if b"/.-+".contains(first) { char::from(*first) } else { '_' });
            rest = &rest[1..];
        }
    }
    if text.len() > CLASS {
        text = format!("~{}", &text[text.len() - CLASS + 1..]);
    }
    text
}

/// Whether a word is a number or drawn at random: a digit, `tmp` and six more, or six or more of both cases, except for a
/// capital at its start.
fn varies(word: &[u8]) -> bool {
    word.iter().any(u8::is_ascii_digit)
        || (word.starts_with(b"tmp") && word.len() >= 3 + RANDOM)
        || (word.len() >= RANDOM
            && word.iter().any(u8::is_ascii_lowercase)
            && word[1..].iter().any(u8::is_ascii_uppercase))
}

fn signal(number: u64) -> String {
    let known = [(1, "SIGHUP"), (2, "SIGINT"), (3, "SIGQUIT"), (9, "SIGKILL"), (10, "SIGUSR1"), (12, "SIGUSR2")];
    let more = [(15, "SIGTERM"), (17, "SIGCHLD"), (18, "SIGCONT"), (19, "SIGSTOP"), (23, "SIGURG"), (24, "SIGXCPU")];
    let name = known.iter().chain(&more).find(|(of, _)| *of == number).map(|(_, name)| (*name).to_owned());
    name.unwrap_or_else(|| format!("{number}"))
}

/// The namespaces that clone flags name, as `mnt+pid`; empty if there is none.
fn namespaces(flags: u64) -> String {
    let all = [
        (0x0002_0000, "mnt"),
        (0x0200_0000, "cgroup"),
        (0x0400_0000, "uts"),
        (0x0800_0000, "ipc"),
        (0x1000_0000, "user"),
        (0x2000_0000, "pid"),
        (0x4000_0000, "net"),
    ];
    let mut text = String::new();
    for (_, name) in all.iter().filter(|(bit, _)| flags & bit != 0) {
        let _ = write!(text, "{}{name}", if text.is_empty() { "" } else { "+" });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{namespaces, normal};

    #[test]
    fn a_path_keeps_what_is_the_same_in_every_run() {
        for (path, expected) in [
            ("/run/runc/leakcheck-runc-10000-a1b2c3/state.json", "/run/runc/leakcheck-runc-N-N/state.json"),
            ("/tmp/tmpabc_defg/x", "/tmp/N/x"),
            ("/tmp/boxAbCdEf", "/tmp/N"),
            ("/run/runc.QWErty", "/run/runc.N"),
            ("/run/runc.abcdef", "/run/runc.N"),
            ("/tmp/prooted-17-abcdef", "/tmp/prooted-N-N"),
            ("/tmp/name-abcdef", "/tmp/name-abcdef"),
            ("/proc/self/attr.ending", "/proc/self/attr.ending"),
            ("/opt/Capital/lib.so", "/opt/Capital/lib.so"),
            ("/sys/fs/cgroup/unified/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs"),
            ("/a b,c:(d)", "/a_b_c__d_"),
        ] {
            assert_eq!(normal(path.as_bytes()), expected);
        }
    }

    #[test]
    fn the_end_of_a_long_path_stays() {
        let long = normal(format!("/{}/end", "deep/".repeat(100)).as_bytes());
        assert!(long.len() <= 72 && long.starts_with('~') && long.ends_with("/end"), "{long}");
    }

    #[test]
    fn namespaces_have_one_order() {
        assert_eq!(namespaces(0x2002_0000), "mnt+pid");
        assert_eq!(namespaces(17), "");
    }
}
