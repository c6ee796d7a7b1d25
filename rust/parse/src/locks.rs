//! `/proc/locks` (proc_locks(5)) and the `lock:` lines of fdinfo, which have the same form.
//!
//! Written by `lock_get_status()` in the kernel's `fs/locks.c`.

use super::Device;
use super::error::{At, Result};
use super::scan;

/// Who made a lock, and by which interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LockKind {
    /// flock(2): belongs to the open file description.
    Flock,
    /// `F_SETLK` of fcntl(2): belongs to the process.
    Posix,
    /// `F_OFD_SETLK` of fcntl(2), since Linux 3.15: belongs to the open file description.
    Ofd,
    /// `F_SETLEASE` of fcntl(2).
    Lease,
    /// A delegation of an NFS server.
    Deleg,
    /// A pNFS layout.
    Layout,
    /// A POSIX lock that an NFS server tests access with.
    AccessPosix,
}

impl LockKind {
    /// The kernel's word for it, as in `/proc/locks`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Flock => "FLOCK",
            Self::Posix => "POSIX",
            Self::Ofd => "OFDLCK",
            Self::Lease => "LEASE",
            Self::Deleg => "DELEG",
            Self::Layout => "LAYOUT",
            Self::AccessPosix => "ACCESS",
        }
    }

    const ALL: [Self; 7] =
        [Self::Flock, Self::Posix, Self::Ofd, Self::Lease, Self::Deleg, Self::Layout, Self::AccessPosix];
}

/// What a lock permits its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// A shared lock or read lease.
    Read,
    /// An exclusive lock or write lease.
    Write,
    /// `LOCK_MAND|LOCK_RW` of flock(2), before Linux 5.16.
    ReadWrite,
    /// `UNLCK`: a lease that is being broken down to nothing; `NONE`: `LOCK_MAND` alone, before Linux 5.16.
    Unlocked,
}

/// Where a lease, delegation or layout is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeaseState {
    /// Held.
    Active,
    /// Its holder was asked to give it up; the access shown is what will remain.
    Breaking,
    /// Waits for others to give theirs up.
    Breaker,
}

/// One lock or one waiter for a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lock {
    /// The position in this listing, shared by a lock and its waiters; no identity. Always 1 in fdinfo.
    pub id: u64,
    /// The line has `->`: it waits for the lock with the same `id`.
    pub blocked: bool,
    /// The interface that made it.
    pub kind: LockKind,
    /// `MANDATORY`, before Linux 5.15.
    pub mandatory: bool,
    /// For leases, delegations and layouts.
    pub lease: Option<LeaseState>,
    /// What it permits.
    pub access: Access,
    /// Who took it, which may be dead while a child holds on; −1 for OFD locks, 0 if not visible in the reader's
    /// PID namespace.
    pub pid: i32,
    /// The filesystem's device, absent where the kernel prints `<none>:0`. On btrfs and on overlayfs without `xino=on` it
    /// may differ from `st_dev`.
    pub dev: Option<Device>,
    /// The file's inode; 0 without `dev`.
    pub inode: u64,
    /// First locked byte.
    pub start: u64,
    /// Last locked byte; `None` is `EOF`, the end of the file however it grows.
    pub end: Option<u64>,
}

const FORMAT: &str = "locks";

/// Reads the whole of `/proc/locks`.
///
/// # Errors
/// If a line is no lock or the last one was cut.
pub fn parse(input: &[u8]) -> Result<Vec<Lock>> {
    scan::lines(FORMAT, input)?.map(|at| parse_line(at.line)).collect()
}

/// Reads one line without its newline: of `/proc/locks`, or what follows `lock:` in fdinfo.
///
/// # Errors
/// If a column is missing, unknown or one too many.
pub fn parse_line(line: &[u8]) -> Result<Lock> {
    let at = At { format: FORMAT, line };
    let mut rest = line;
    let id = at.need("id", scan::word(&mut rest).strip_suffix(b":").and_then(scan::unsigned))?;
    let mut word = scan::word(&mut rest);
    let blocked = word == b"->";
    if blocked {
        word = scan::word(&mut rest);
    }
    let kind = at.need("kind", LockKind::ALL.into_iter().find(|kind| kind.as_str().as_bytes() == word))?;
    let (mandatory, lease) = at.need("mode", mode(scan::word(&mut rest)))?;
    let access = at.need("access", access(scan::word(&mut rest)))?;
    let pid = at.need("pid", scan::signed(scan::word(&mut rest)))?;
    let (dev, inode) = at.need("dev:inode", file(scan::word(&mut rest)))?;
    let start = at.need("start", scan::unsigned(scan::word(&mut rest)))?;
    let end = match scan::word(&mut rest) {
        b"EOF" => None,
        last => Some(at.need("end", scan::unsigned(last))?),
    };
    if !scan::trim_blanks(rest).is_empty() {
        return Err(at.error("end of line"));
    }
    Ok(Lock { id, blocked, kind, mandatory, lease, access, pid, dev, inode, start, end })
}

fn mode(word: &[u8]) -> Option<(bool, Option<LeaseState>)> {
    match word {
        b"ADVISORY" | b"*NOINODE*" | b"MSNFS" => Some((false, None)),
        b"MANDATORY" => Some((true, None)),
        b"ACTIVE" => Some((false, Some(LeaseState::Active))),
        b"BREAKING" => Some((false, Some(LeaseState::Breaking))),
        b"BREAKER" => Some((false, Some(LeaseState::Breaker))),
        _ => None,
    }
}

fn access(word: &[u8]) -> Option<Access> {
    match word {
        b"READ" => Some(Access::Read),
        b"WRITE" => Some(Access::Write),
        b"RW" => Some(Access::ReadWrite),
        b"NONE" | b"UNLCK" => Some(Access::Unlocked),
        _ => None,
    }
}

fn file(word: &[u8]) -> Option<(Option<Device>, u64)> {
    if word == b"<none>:0" {
        return Some((None, 0));
    }
    let colon = memchr::memrchr(b':', word)?;
    let (dev, inode) = (&word[..colon], &word[colon + 1..]);
    // Before Linux 5.5 the inode was printed with %ld, and overlayfs sets its top bit.
    let inode = scan::unsigned(inode).or_else(|| scan::signed::<i64>(inode).map(i64::cast_unsigned))?;
    Some((Some(Device::from_hex(dev)?), inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCKS: &[u8] = b"1: LEASE  ACTIVE    READ 1 fe:00:9978129 0 EOF\n\
2: LEASE  BREAKING  READ 1 fe:00:9978128 0 EOF\n\
3: OFDLCK ADVISORY  WRITE -1 fe:00:9978127 0 EOF\n\
4: POSIX  ADVISORY  READ 1 fe:00:9978126 5 14\n\
5: FLOCK  ADVISORY  WRITE 1 fe:00:9978125 0 EOF\n\
5: -> FLOCK  ADVISORY  WRITE 42 fe:00:9978125 0 EOF\n";

    const DISK: Device = Device { major: 0xfe, minor: 0 };

    #[test]
    fn reads_one_lock_of_every_interface() {
        let locks = parse(LOCKS).unwrap();
        let kinds: Vec<_> = locks.iter().map(|lock| (lock.kind, lock.access, lock.pid, lock.inode)).collect();
        assert_eq!(
            kinds,
            [
                (LockKind::Lease, Access::Read, 1, 9_978_129),
                (LockKind::Lease, Access::Read, 1, 9_978_128),
                (LockKind::Ofd, Access::Write, -1, 9_978_127),
                (LockKind::Posix, Access::Read, 1, 9_978_126),
                (LockKind::Flock, Access::Write, 1, 9_978_125),
                (LockKind::Flock, Access::Write, 42, 9_978_125),
            ]
        );
        assert!(locks.iter().all(|lock| lock.dev == Some(DISK) && !lock.mandatory));
        assert_eq!((locks[3].start, locks[3].end, locks[4].end), (5, Some(14), None));
        assert_eq!(locks[0].lease, Some(LeaseState::Active));
        assert_eq!(locks[1].lease, Some(LeaseState::Breaking));
    }

    #[test]
    fn a_waiter_shares_the_id_of_the_lock_it_waits_for() {
        let locks = parse(LOCKS).unwrap();
        assert_eq!((locks[4].id, locks[4].blocked), (5, false));
        assert_eq!((locks[5].id, locks[5].blocked), (5, true));
        // Waiters of waiters are indented further by newer kernels.
        assert!(parse_line(b"5:    -> FLOCK  ADVISORY  WRITE 43 fe:00:9978125 0 EOF").unwrap().blocked);
    }

    #[test]
    fn reads_the_forms_of_other_kernels() {
        let none = parse_line(b"1: LEASE  BREAKER   WRITE 0 <none>:0 0 EOF").unwrap();
        assert_eq!((none.dev, none.inode, none.lease), (None, 0, Some(LeaseState::Breaker)));
        assert!(parse_line(b"6: POSIX  MANDATORY WRITE 9 08:01:3 0 0").unwrap().mandatory);
        let noinode = parse_line(b"7: ACCESS *NOINODE* READ  9 <none>:0 0 EOF").unwrap();
        assert_eq!(noinode.kind, LockKind::AccessPosix);
        let msnfs = parse_line(b"8: FLOCK  MSNFS     RW    9 08:01:3 0 EOF").unwrap();
        assert_eq!(msnfs.access, Access::ReadWrite);
        let unlck = parse_line(b"1: LEASE  BREAKING  UNLCK 2558 08:03:815793 0 EOF").unwrap();
        assert_eq!(unlck.access, Access::Unlocked);
        let negative = parse_line(b"1: FLOCK  ADVISORY  WRITE 9 00:2a:-2 0 EOF").unwrap();
        assert_eq!(negative.inode, u64::MAX - 1);
        for (word, kind) in [("DELEG ", LockKind::Deleg), ("LAYOUT", LockKind::Layout)] {
            let line = format!("2: {word} ACTIVE    READ 7 fd:00:1 0 EOF");
            assert_eq!(parse_line(line.as_bytes()).unwrap().kind, kind);
        }
    }

    #[test]
    fn an_error_names_the_column() {
        for (line, field) in [
            (&b""[..], "id"),
            (b"x: FLOCK", "id"),
            (b"1: FLOKC ", "kind"),
            (b"1: -> ", "kind"),
            (b"1: FLOCK MAYBE", "mode"),
            (b"1: FLOCK ADVISORY EXEC", "access"),
            (b"1: FLOCK ADVISORY READ x", "pid"),
            (b"1: FLOCK ADVISORY READ 1 fe:9", "dev:inode"),
            (b"1: FLOCK ADVISORY READ 1 <none>:1", "dev:inode"),
            (b"1: FLOCK ADVISORY READ 1 fe:00:1 -1", "start"),
            (b"1: FLOCK ADVISORY READ 1 fe:00:1 0", "end"),
            (b"1: FLOCK ADVISORY READ 1 fe:00:1 0 EOF x", "end of line"),
        ] {
            assert_eq!(parse_line(line).unwrap_err().field(), field);
        }
        assert_eq!(parse(&LOCKS[..LOCKS.len() - 1]).unwrap_err().field(), "end of line");
        assert_eq!(parse(b"").unwrap(), []);
    }
}
