//! Fault plans: a fault's recipe in one line, `KIND[:ARGUMENT][,FLAG…]`, which parses back and replays.
//!
//! A kind consists of lower-case ASCII letters and, after the first, hyphens; an argument of anything except commas and
//! white space; a flag of lower-case ASCII letters. Only the injector of a kind knows whether its argument and flags
//! are valid.

#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

/// The operations that a plan can name: those that crash points are at, and, for faults, `close` and `wait`. Calls that do the
/// same have one name.
pub const OPERATIONS: &[&str] = &[
    "acct",
    "add_key",
    "bind",
    "bpf",
    "chmod",
    "chown",
    "chroot",
    "clock_settime",
    "clone",
    "close",
    "connect",
    "delete_module",
    "execve",
    "exit",
    "fallocate",
    "file_setattr",
    "fsconfig",
    "fsmount",
    "init_module",
    "io_submit",
    "ioctl",
    "kexec_load",
    "keyctl",
    "kill",
    "link",
    "listen",
    "lock",
    "mkdir",
    "mknod",
    "mount",
    "mount_setattr",
    "move_mount",
    "mq_open",
    "mq_receive",
    "mq_send",
    "mq_unlink",
    "msgctl",
    "msgget",
    "msgrcv",
    "msgsnd",
    "open",
    "open_tree",
    "pivot_root",
    "prctl",
    "quotactl",
    "reboot",
    "removexattr",
    "rename",
    "request_key",
    "rmdir",
    "semctl",
    "semget",
    "semop",
    "send",
    "setdomainname",
    "sethostname",
    "setns",
    "setpgid",
    "setsid",
    "setsockopt",
    "setxattr",
    "shmctl",
    "shmget",
    "swapoff",
    "swapon",
    "symlink",
    "sync",
    "syslog",
    "truncate",
    "umount",
    "unlink",
    "unshare",
    "utime",
    "wait",
    "write",
];

/// What the injector of this kind does to one run, with an argument and flags. Each value prints the line that it is
/// parsed from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    kind: String,
    argument: String,
    flags: Vec<String>,
}

impl Plan {
    /// The injector's kind.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Empty if there is none.
    #[must_use]
    pub fn argument(&self) -> &str {
        &self.argument
    }

    /// In the order of the line.
    #[must_use]
    pub fn flags(&self) -> &[String] {
        &self.flags
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        if !self.argument.is_empty() {
            write!(f, ":{}", self.argument)?;
        }
        self.flags.iter().try_for_each(|flag| write!(f, ",{flag}"))
    }
}

/// A line that is not a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unexpected {} at character {at}; give KIND[:ARGUMENT][,FLAG]", found.map_or("end".to_owned(), |c| format!("{c:?}")))]
pub struct ParseError {
    /// Counted from 1.
    pub at: usize,
    /// `None` is the end of the line.
    pub found: Option<char>,
}

impl FromStr for Plan {
    type Err = ParseError;

    fn from_str(line: &str) -> Result<Self, ParseError> {
        let mut rest = line;
        let unexpected = |rest: &str| ParseError {
            at: line[..line.len() - rest.len()].chars().count() + 1,
            found: rest.chars().next(),
        };
        // Removes the characters that `belongs` accepts from the start of the rest; there must be at least one.
        let mut part = |separator: Option<char>, belongs: fn(char) -> bool| {
            let Some(start) = separator.map_or(Some(rest), |c| rest.strip_prefix(c)) else { return Ok(None) };
            let (taken, behind) = start.split_at(start.find(|c| !belongs(c)).unwrap_or(start.len()));
            rest = behind;
            if taken.is_empty() { Err(unexpected(start)) } else { Ok(Some(taken.to_owned())) }
        };
        let lower = |c: char| c.is_ascii_lowercase();
        if line.starts_with('-') {
            return Err(unexpected(line));
        }
        let kind = part(None, |c| c.is_ascii_lowercase() || c == '-')?.unwrap_or_default();
        let argument = part(Some(':'), |c| c != ',' && !is_space(c))?.unwrap_or_default();
        let mut flags = Vec::new();
        while let Some(flag) = part(Some(','), lower)? {
            flags.push(flag);
        }
        if rest.is_empty() { Ok(Plan { kind, argument, flags }) } else { Err(unexpected(rest)) }
    }
}

/// White space, including the ASCII separators that Python and C locales treat as white space.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}
