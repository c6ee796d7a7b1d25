//! A call as text, as strace(1) writes it: the operation, paths as absolute ones, descriptors with what they lead to, flags
//! by name where they matter.

use leakcheck_parse::text::Text;

use super::object::Place;
use super::points::{bytes_at, link, number_at, path, string_at, word_at};
use super::x86_64::{Names, Row};

/// More of a string is not shown.
const SHOWN: usize = 512;
/// More arguments of a program are not shown.
const ARGUMENTS: usize = 8;

type Named = [(u64, &'static str)];

#[rustfmt::skip]
const OPEN: &Named = &[
    (0o1, "O_WRONLY"), (0o2, "O_RDWR"), (0o100, "O_CREAT"), (0o200, "O_EXCL"), (0o1000, "O_TRUNC"), (0o2000, "O_APPEND"),
    (0o4000, "O_NONBLOCK"), (0o200_000, "O_DIRECTORY"), (0o400_000, "O_NOFOLLOW"), (0o2_000_000, "O_CLOEXEC"),
    (0o10_000_000, "O_PATH"), (0o20_000_000, "O_TMPFILE"),
];
#[rustfmt::skip]
const MOUNT: &Named = &[
    (1, "MS_RDONLY"), (2, "MS_NOSUID"), (4, "MS_NODEV"), (8, "MS_NOEXEC"), (0x20, "MS_REMOUNT"), (0x1000, "MS_BIND"),
    (0x2000, "MS_MOVE"), (0x4000, "MS_REC"), (0x8000, "MS_SILENT"), (1 << 17, "MS_UNBINDABLE"), (1 << 18, "MS_PRIVATE"),
    (1 << 19, "MS_SLAVE"), (1 << 20, "MS_SHARED"), (1 << 21, "MS_RELATIME"),
];
const UMOUNT: &Named = &[(1, "MNT_FORCE"), (2, "MNT_DETACH"), (4, "MNT_EXPIRE"), (8, "UMOUNT_NOFOLLOW")];
const RENAME: &Named = &[(1, "RENAME_NOREPLACE"), (2, "RENAME_EXCHANGE"), (4, "RENAME_WHITEOUT")];
const FLOCK: &Named = &[(1, "LOCK_SH"), (2, "LOCK_EX"), (4, "LOCK_NB"), (8, "LOCK_UN")];

/// The call as text; `operation` and `class` are those of its point.
pub(super) fn text(pid: i32, row: &Row, operation: &str, class: &str, arguments: &[u64; 6]) -> String {
    let mut words = Vec::new();
    let string = |at: usize| quoted(&string_at(pid, arguments[at], SHOWN + 1));
    let behind = match row.names {
        Names::Path(at) => {
            words.push(quoted(&path(pid, None, arguments[at])));
            at + 1
        }
        Names::At(dir, at) => {
            words.push(quoted(&path(pid, Some(arguments[dir]), arguments[at])));
            at + 1
        }
        Names::Descriptor(at) | Names::Written(at) => {
            words.push(descriptor(pid, arguments[at]));
            at + 1
        }
        Names::Signal(_) | Names::Namespaces(_) | Names::Nothing => 0,
    };
    let more = |at: usize| arguments.get(at).copied().unwrap_or_default();
    match operation {
        // The flags are in memory.
        "open" if row.number == 437 => words.push(flags(number_at(pid, arguments[2]), OPEN, "O_RDONLY")),
        "open" if row.number == 85 => words.push("O_CREAT|O_WRONLY|O_TRUNC".to_owned()),
        "open" if row.names != Names::Nothing => words.push(flags(more(behind), OPEN, "O_RDONLY")),
        "mkdir" | "chmod" | "mknod" => words.push(format!("0{:o}", more(behind) & 0o177_777)),
        "mount" => words.extend([string(0), string(2), flags(arguments[3], MOUNT, "0")]),
        "umount" if row.i386 != Some(22) => words.push(flags(arguments[1], UMOUNT, "0")),
        "rename" | "link" => {
            words.insert(0, source(pid, row, arguments));
            if row.number == 316 && arguments[4] != 0 {
                words.push(flags(arguments[4], RENAME, "0"));
            }
        }
        "symlink" => words.insert(0, string(0)),
        "lock" if row.number == 73 => words.push(flags(arguments[1], FLOCK, "0")),
        "lock" => {
            let class = ["F_RDLCK", "F_WRLCK", "F_UNLCK"].get(word_at(pid, arguments[2]) as usize & 0xffff);
            words.push((*class.unwrap_or(&"?")).to_owned());
        }
        "kill" if row.number == 424 => words.extend([descriptor(pid, arguments[0]), class.to_owned()]),
        "kill" => words.extend([number(arguments[0]), class.to_owned()]),
        "execve" => words.push(format!("[{}]", program_arguments(pid, more(behind)).join(", "))),
        "setns" => words.extend([descriptor(pid, arguments[0]), class.to_owned()]),
        "bind" => words.extend([descriptor(pid, arguments[0]), address(pid, arguments)]),
        "ioctl" => words.push(format!("{:#x}", arguments[1])),
        "clone" | "unshare" | "prctl" if !class.is_empty() => words.push(class.to_owned()),
        "exit" | "listen" => words.push(number(arguments[0])),
        "shmget" | "semget" | "msgget" => words.push(format!("key {:#x}", arguments[0])),
        "shmctl" | "semctl" | "msgctl" => words.push(number(arguments[0])),
        "mq_open" | "mq_unlink" | "add_key" | "request_key" => words.push(string(0)),
        "sethostname" | "setdomainname" => {
            let length = usize::try_from(arguments[1]).unwrap_or_default().min(64);
            words.push(quoted(&bytes_at(pid, arguments[0], length)));
        }
        _ => {}
    }
    format!("{operation}({})", words.join(", "))
}

/// What a call is about, if it names a file, and whether this must be looked for again once the call has returned.
pub(super) fn place(pid: i32, row: &Row, operation: &str, arguments: &[u64; 6]) -> Option<Place> {
    let follows = match operation {
        "mkdir" | "rmdir" | "unlink" | "rename" | "link" | "symlink" | "mknod" => false,
        "umount" => arguments[1] & 8 == 0,
        _ => true,
    };
    match row.names {
        Names::Path(at) => Some(named(pid, None, arguments[at], follows)),
        Names::At(dir, at) => Some(named(pid, Some(arguments[dir]), arguments[at], follows)),
        Names::Descriptor(at) | Names::Written(at) => Some(Place::Descriptor(arguments[at])),
        Names::Nothing if operation == "bind" => {
            let name = socket_path(pid, arguments).filter(|name| name.first().is_some_and(|byte| *byte != 0));
            Some(name.map_or(Place::Descriptor(arguments[0]), |name| Place::Path { base: None, name, follows: false }))
        }
        _ => None,
    }
}

/// Where a rename takes what it moves from.
pub(super) fn origin(pid: i32, row: &Row, arguments: &[u64; 6]) -> Place {
    match row.names {
        Names::At(..) => named(pid, Some(arguments[0]), arguments[1], false),
        _ => named(pid, None, arguments[0], false),
    }
}

fn named(pid: i32, dir: Option<u64>, address: u64, follows: bool) -> Place {
    // Descriptors are ints; AT_FDCWD is negative.
    #[allow(clippy::cast_possible_truncation, reason = "descriptors are ints")]
    let base = dir.map(|fd| fd as u32 as i32).filter(|fd| *fd >= 0);
    Place::Path { base, name: string_at(pid, address, 4096), follows }
}

fn source(pid: i32, row: &Row, arguments: &[u64; 6]) -> String {
    match row.names {
        Names::At(..) => quoted(&path(pid, Some(arguments[0]), arguments[1])),
        _ => quoted(&path(pid, None, arguments[0])),
    }
}

fn program_arguments(pid: i32, argv: u64) -> Vec<String> {
    let pointers = (0..=ARGUMENTS as u64).map(|n| number_at(pid, argv.wrapping_add(8 * n)));
    let mut words: Vec<String> = pointers.take_while(|at| *at != 0).map(|at| quoted(&string_at(pid, at, 65))).collect();
    if words.len() > ARGUMENTS {
        words[ARGUMENTS] = "…".to_owned();
    }
    words
}

/// The path of a UNIX socket that a bind names; an abstract one begins with a zero byte.
fn socket_path(pid: i32, arguments: &[u64; 6]) -> Option<Vec<u8>> {
    let address = bytes_at(pid, arguments[1], usize::try_from(arguments[2]).ok()?.min(110));
    let (family, name) = address.split_first_chunk::<2>()?;
    let length =
        name.iter().skip(1).position(|byte| *byte == 0).filter(|_| name[0] != 0).map_or(name.len(), |at| at + 1);
    (u16::from_ne_bytes(*family) == 1 && !name.is_empty()).then(|| name[..length].to_vec())
}

fn address(pid: i32, arguments: &[u64; 6]) -> String {
    socket_path(pid, arguments).map_or_else(|| "no path".to_owned(), |name| quoted(&name))
}

fn descriptor(pid: i32, fd: u64) -> String {
    let to = link(pid, &format!("fd/{fd}"));
    format!("{}<{}>", number(fd), Text::from(&to[..to.len().min(SHOWN)]))
}

/// An int, which fills the lower half of a register.
fn number(value: u64) -> String {
    #[allow(clippy::cast_possible_truncation, reason = "ints")]
    (value as u32 as i32).to_string()
}

fn quoted(bytes: &[u8]) -> String {
    let (shown, more) = if bytes.len() > SHOWN { (&bytes[..SHOWN], "…") } else { (bytes, "") };
    format!("\"{}\"{more}", Text::from(shown).to_string().replace('"', "\\\""))
}

fn flags(value: u64, names: &Named, none: &str) -> String {
    let mut rest = value & 0xffff_ffff;
    let mut words = Vec::new();
    for (bit, name) in names {
        if rest & bit == *bit {
            words.push((*name).to_owned());
            rest &= !bit;
        }
    }
    if rest != 0 {
        words.push(format!("{rest:#x}"));
    }
    if words.is_empty() { none.to_owned() } else { words.join("|") }
}

#[cfg(test)]
mod tests {
    use super::{MOUNT, OPEN, flags, quoted};

    #[test]
    fn flags_have_names_and_the_unknown_ones_stay() {
        assert_eq!(flags(0o101, OPEN, "O_RDONLY"), "O_WRONLY|O_CREAT");
        assert_eq!(flags(0, OPEN, "O_RDONLY"), "O_RDONLY");
        assert_eq!(flags(0x1000_5000, MOUNT, "0"), "MS_BIND|MS_REC|0x10000000");
    }

    #[test]
    fn a_hostile_name_neither_ends_its_quotes_nor_its_line() {
        assert_eq!(quoted(b"a\"\n\x1b\xff"), r#""a\"\n\x1b\xff""#);
        assert!(quoted(&[b'x'; 9000]).ends_with("x\"…"));
    }
}
