//! What depends on the architecture: the numbers of the calls that are points, and how calls of other conventions are told.

use leakcheck_sys::trace::Call;

/// x86-64's own convention; x32 has the same, with [`X32`] in the number.
pub(super) const NATIVE: u32 = 0xc000_003e;
/// `int 0x80`, and programs for i386.
pub(super) const I386: u32 = 0x4000_0003;
/// In the number of an x32 call.
pub(super) const X32: u32 = 0x4000_0000;

/// What of a call names what it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// Nothing.
    Nothing,
    /// A path in an argument.
    Path(usize),
    /// A directory's descriptor and a path relative to it.
    At(usize, usize),
    /// A descriptor.
    Descriptor(usize),
    /// A signal's number.
    Signal(usize),
    /// Namespaces, as `CLONE_NEW*`.
    Namespaces(usize),
    /// A descriptor through which something is sent or written.
    Written(usize),
}

/// When a call is a point, as far as its arguments tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    Always,
    /// One of the bits is set in the argument.
    AnyBit(usize, u32),
    /// None of the bits is set in the argument.
    NoBit(usize, u32),
    /// The argument is one of these.
    OneOf(usize, &'static [u32]),
}

/// A call that is a point. `operation` is the same for all calls that do the same.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) operation: &'static str,
    /// Its number on x86-64.
    pub(super) number: u32,
    /// Its number on i386, if it has one.
    pub(super) i386: Option<u32>,
    pub(super) names: Names,
    pub(super) when: When,
}

const fn row(operation: &'static str, number: u32, i386: u32, names: Names, when: When) -> Row {
    Row { operation, number, i386: Some(i386), names, when }
}

use Names::{At, Descriptor, Namespaces, Nothing, Path, Signal, Written};
use When::{Always, AnyBit, NoBit, OneOf};

/// `O_WRONLY`, `O_RDWR`, `O_CREAT`, `O_TRUNC`, and the bit of `O_TMPFILE` that `O_DIRECTORY` lacks.
pub(super) const WRITES: u32 = 0o1 | 0o2 | 0o100 | 0o1000 | 0o20_000_000;
/// `CLONE_THREAD`.
pub(super) const THREAD: u32 = 0x0001_0000;
/// exit(2), which ends a thread.
pub(super) const EXIT: u32 = 60;
/// `CLONE_UNTRACED`.
pub(super) const UNTRACED: u64 = 0x0080_0000;
/// `IPC_RMID`, `IPC_SET`, `SETVAL`, `SETALL`, `SHM_LOCK`, `SHM_UNLOCK`; the 64-bit flag that some callers set comes with them.
const OBJECT: &[u32] = &[0, 1, 11, 12, 16, 17, 0x100, 0x101, 0x10b, 0x10c, 0x110, 0x111];
/// `F_SETLK`, `F_SETLKW`, both of i386 for large files, and those for open file descriptions.
const LOCKS: &[u32] = &[6, 7, 13, 14, 37, 38];
#[rustfmt::skip]
const CONTROLS: &[u32] = &[
    // LOOP_SET_FD, LOOP_CLR_FD, LOOP_SET_STATUS, LOOP_SET_STATUS64, LOOP_CHANGE_FD, LOOP_CONFIGURE, LOOP_CTL_*.
    0x4c00, 0x4c01, 0x4c02, 0x4c04, 0x4c06, 0x4c0a, 0x4c80, 0x4c81, 0x4c82,
    // FS_IOC_SETFLAGS of both widths, FS_IOC_FSSETXATTR, FICLONE, FICLONERANGE, FIFREEZE, FITHAW.
    0x4008_6602, 0x4004_6602, 0x401c_5820, 0x4004_9409, 0x4020_940d, 0xc004_5877, 0xc004_5878,
    // BTRFS_IOC_SUBVOL_CREATE, BTRFS_IOC_SNAP_DESTROY, BTRFS_IOC_SNAP_CREATE_V2, BTRFS_IOC_SUBVOL_CREATE_V2.
    0x5000_940e, 0x5000_940f, 0x5000_9417, 0x5000_9418,
    // DM_DEV_CREATE, DM_DEV_REMOVE, DM_DEV_RENAME, DM_DEV_SUSPEND, DM_TABLE_LOAD.
    0xc138_fd03, 0xc138_fd04, 0xc138_fd05, 0xc138_fd06, 0xc138_fd09,
    // TUNSETIFF, TUNSETPERSIST, SIOCADDRT, SIOCDELRT, SIOCSIF{FLAGS,ADDR,NETMASK,MTU,NAME,HWADDR}, SIOCBR{ADDBR,DELBR,ADDIF,DELIF}.
    0x4004_54ca, 0x4004_54cb, 0x890b, 0x890c, 0x8914, 0x8916, 0x891c, 0x8922, 0x8923, 0x8924, 0x89a0, 0x89a1, 0x89a2, 0x89a3,
];
/// `FSCONFIG_CMD_CREATE`, `FSCONFIG_CMD_RECONFIGURE`, `FSCONFIG_CMD_CREATE_EXCL`.
const MAKES: &[u32] = &[6, 7, 8];
/// `IPT_SO_SET_REPLACE`, which replaces a table of iptables.
const TABLES: &[u32] = &[64];
/// Those that empty the kernel's log or change its level.
const LOG: &[u32] = &[4, 5, 6, 7, 8];
/// `PR_SET_PDEATHSIG`, `PR_SET_CHILD_SUBREAPER`.
const PROCESS: &[u32] = &[1, 36];

/// All calls that change what is seen from outside a process, in the order of their frequency, with the exceptions of
/// [`EVERY`]. docs/reference/crash-points.md has the reasons.
pub(super) const ROWS: &[Row] = &[
    row("open", 257, 295, At(0, 1), AnyBit(2, WRITES)),
    row("open", 2, 5, Path(0), AnyBit(1, WRITES)),
    row("open", 437, 437, At(0, 1), Always),
    row("open", 85, 8, Path(0), Always),
    row("lock", 72, 55, Descriptor(0), OneOf(1, LOCKS)),
    row("lock", 72, 221, Descriptor(0), OneOf(1, LOCKS)),
    row("lock", 73, 143, Descriptor(0), Always),
    row("ioctl", 16, 54, Descriptor(0), OneOf(1, CONTROLS)),
    row("clone", 56, 120, Namespaces(0), NoBit(0, THREAD)),
    row("clone", 435, 435, Nothing, Always),
    row("clone", 57, 2, Nothing, Always),
    row("clone", 58, 190, Nothing, Always),
    row("execve", 59, 11, Path(0), Always),
    row("execve", 322, 358, At(0, 1), Always),
    row("exit", 231, 252, Nothing, Always),
    row("exit", EXIT, 1, Nothing, Always),
    row("kill", 62, 37, Signal(1), Always),
    row("kill", 424, 424, Signal(1), Always),
    row("kill", 129, 178, Signal(1), Always),
    row("mount", 165, 21, Path(1), Always),
    row("umount", 166, 52, Path(0), Always),
    row("umount", 166, 22, Path(0), Always),
    row("pivot_root", 155, 217, Path(0), Always),
    row("chroot", 161, 61, Path(0), Always),
    row("move_mount", 429, 429, At(2, 3), Always),
    row("open_tree", 428, 428, At(0, 1), AnyBit(2, 1)),
    row("open_tree", 467, 467, At(0, 1), AnyBit(2, 1)),
    row("fsconfig", 431, 431, Nothing, OneOf(1, MAKES)),
    row("fsmount", 432, 432, Nothing, Always),
    row("mount_setattr", 442, 442, At(0, 1), Always),
    row("unshare", 272, 310, Namespaces(0), Always),
    row("setns", 308, 346, Namespaces(1), Always),
    row("mkdir", 83, 39, Path(0), Always),
    row("mkdir", 258, 296, At(0, 1), Always),
    row("rmdir", 84, 40, Path(0), Always),
    row("unlink", 87, 10, Path(0), Always),
    row("unlink", 263, 301, At(0, 1), Always),
    row("rename", 82, 38, Path(1), Always),
    row("rename", 264, 302, At(2, 3), Always),
    row("rename", 316, 353, At(2, 3), Always),
    row("link", 86, 9, Path(1), Always),
    row("link", 265, 303, At(2, 3), Always),
    row("symlink", 88, 83, Path(1), Always),
    row("symlink", 266, 304, At(1, 2), Always),
    row("mknod", 133, 14, Path(0), Always),
    row("mknod", 259, 297, At(0, 1), Always),
    row("truncate", 76, 92, Path(0), Always),
    row("truncate", 76, 193, Path(0), Always),
    row("truncate", 77, 93, Descriptor(0), Always),
    row("truncate", 77, 194, Descriptor(0), Always),
    row("fallocate", 285, 324, Descriptor(0), Always),
    row("utime", 132, 30, Path(0), Always),
    row("utime", 235, 271, Path(0), Always),
    row("utime", 261, 299, At(0, 1), Always),
    row("utime", 280, 320, At(0, 1), Always),
    row("utime", 280, 412, At(0, 1), Always),
    row("open", 304, 342, Nothing, AnyBit(2, WRITES)),
    row("chmod", 90, 15, Path(0), Always),
    row("chmod", 91, 94, Descriptor(0), Always),
    row("chmod", 268, 306, At(0, 1), Always),
    row("chmod", 452, 452, At(0, 1), Always),
    row("chown", 92, 182, Path(0), Always),
    row("chown", 93, 95, Descriptor(0), Always),
    row("chown", 94, 16, Path(0), Always),
    row("chown", 260, 298, At(0, 1), Always),
    row("chown", 92, 212, Path(0), Always),
    row("chown", 93, 207, Descriptor(0), Always),
    row("chown", 94, 198, Path(0), Always),
    row("file_setattr", 469, 469, At(0, 1), Always),
    row("setxattr", 188, 226, Path(0), Always),
    row("setxattr", 189, 227, Path(0), Always),
    row("setxattr", 190, 228, Descriptor(0), Always),
    row("setxattr", 463, 463, At(0, 1), Always),
    row("removexattr", 197, 235, Path(0), Always),
    row("removexattr", 198, 236, Path(0), Always),
    row("removexattr", 199, 237, Descriptor(0), Always),
    row("removexattr", 466, 466, At(0, 1), Always),
    row("bind", 49, 361, Nothing, Always),
    row("listen", 50, 363, Nothing, Always),
    row("setsockopt", 54, 366, Nothing, OneOf(2, TABLES)),
    row("shmget", 29, 395, Nothing, Always),
    row("semget", 64, 393, Nothing, Always),
    row("msgget", 68, 399, Nothing, Always),
    row("shmctl", 31, 396, Nothing, OneOf(1, OBJECT)),
    row("semctl", 66, 394, Nothing, OneOf(2, OBJECT)),
    row("msgctl", 71, 402, Nothing, OneOf(1, OBJECT)),
    row("mq_open", 240, 277, Nothing, AnyBit(1, WRITES)),
    row("mq_unlink", 241, 278, Nothing, Always),
    row("add_key", 248, 286, Nothing, Always),
    row("request_key", 249, 287, Nothing, Always),
    row("keyctl", 250, 288, Nothing, Always),
    row("prctl", 157, 172, Nothing, OneOf(0, PROCESS)),
    row("setsid", 112, 66, Nothing, Always),
    row("setpgid", 109, 57, Nothing, Always),
    row("sethostname", 170, 74, Nothing, Always),
    row("setdomainname", 171, 121, Nothing, Always),
    row("quotactl", 179, 131, Path(1), Always),
    row("quotactl", 443, 443, Descriptor(0), Always),
    row("swapon", 167, 87, Path(0), Always),
    row("swapoff", 168, 115, Path(0), Always),
    row("acct", 163, 51, Path(0), Always),
    row("clock_settime", 164, 79, Nothing, Always),
    row("clock_settime", 227, 264, Nothing, Always),
    row("clock_settime", 227, 404, Nothing, Always),
    row("clock_settime", 159, 124, Nothing, Always),
    row("clock_settime", 305, 343, Nothing, Always),
    row("clock_settime", 305, 405, Nothing, Always),
    row("init_module", 175, 128, Nothing, Always),
    row("init_module", 313, 350, Descriptor(0), Always),
    row("delete_module", 176, 129, Nothing, Always),
    row("kexec_load", 246, 283, Nothing, Always),
    Row { operation: "kexec_load", number: 320, i386: None, names: Nothing, when: Always },
    row("reboot", 169, 88, Nothing, Always),
    row("syslog", 103, 103, Nothing, OneOf(0, LOG)),
    row("bpf", 321, 357, Nothing, Always),
];

/// Calls that are points only if every one is asked for: they are frequent, and what they change is there at the next point.
pub(super) const EVERY: &[Row] = &[
    row("write", 1, 4, Written(0), Always),
    row("write", 20, 146, Written(0), Always),
    row("write", 18, 181, Written(0), Always),
    row("write", 296, 334, Written(0), Always),
    row("write", 328, 379, Written(0), Always),
    row("write", 40, 187, Written(0), Always),
    row("write", 40, 239, Written(0), Always),
    row("write", 275, 313, Written(2), Always),
    row("write", 326, 377, Written(2), Always),
    row("sync", 74, 118, Descriptor(0), Always),
    row("sync", 75, 148, Descriptor(0), Always),
    row("sync", 306, 344, Descriptor(0), Always),
    row("sync", 162, 36, Nothing, Always),
    row("sync", 26, 144, Nothing, Always),
    row("send", 44, 369, Written(0), Always),
    row("send", 46, 370, Written(0), Always),
    row("send", 307, 345, Written(0), Always),
    row("connect", 42, 362, Written(0), Always),
    row("io_submit", 209, 248, Nothing, Always),
    Row { operation: "semop", number: 65, i386: None, names: Nothing, when: Always },
    row("semop", 220, 420, Nothing, Always),
    row("msgsnd", 69, 400, Nothing, Always),
    row("msgrcv", 70, 401, Nothing, Always),
    row("mq_send", 242, 279, Nothing, Always),
    row("mq_send", 242, 418, Nothing, Always),
    row("mq_receive", 243, 280, Nothing, Always),
    row("mq_receive", 243, 419, Nothing, Always),
];

/// Calls that are points only for faults. No filter stops at them: a payload makes them all the time.
pub(super) const WATCHED: &[Row] = &[
    row("close", 3, 6, Descriptor(0), Always),
    row("wait", 61, 114, Nothing, Always),
    row("wait", 61, 7, Nothing, Always),
    row("wait", 247, 284, Nothing, Always),
];

/// i386's socketcall(2) and ipc(2): the numbers in their first argument, and those of the calls that these stand for.
const SOCKETCALL: (u64, &[(u32, u64)]) =
    (102, &[(2, 361), (3, 362), (4, 363), (9, 369), (11, 369), (14, 366), (16, 370), (20, 345)]);
const IPC: (u64, &[(u32, u64)]) =
    (117, &[(1, 420), (2, 393), (3, 394), (4, 420), (11, 400), (12, 401), (13, 399), (14, 402), (23, 395), (24, 396)]);

/// The numbers of prctl(2), seccomp(2) and io_uring_setup(2).
const PRCTL: u32 = 157;
const SECCOMP: u32 = 317;
const IO_URING: u32 = 425;
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
const LISTENER: When = AnyBit(1, 8);

/// What is said of a call by which a program traces.
pub(super) const TRACES: &str = "it calls ptrace itself, which fails while it is traced";
/// What is said of a call by which a program is told of the calls of others.
pub(super) const WATCHES: &str = "it watches calls of others itself (seccomp user notification): these have no points";

/// Calls that are no points, but without which points are missing: when, and what to say of each.
pub(super) const HIDES: &[(u32, u32, When, &str)] = &[
    (101, 26, Always, TRACES),
    (IO_URING, 425, Always, "it uses io_uring: what it does through it has no points"),
    (SECCOMP, 354, LISTENER, WATCHES),
];

/// The rows of a call, by convention and number; with `every`, also those of [`EVERY`].
pub(super) fn rows(call: &Call, every: bool) -> impl Iterator<Item = &'static Row> {
    let (arch, number) = (call.arch, native(call.number));
    let more = if every { EVERY } else { &[] };
    let is_it = move |row: &&Row| if arch == I386 { row.i386 == Some(number) } else { row.number == number };
    ROWS.iter().chain(more).filter(is_it)
}

/// The row of a call that is watched.
pub(super) fn watched(call: &Call) -> Option<&'static Row> {
    let number = native(call.number);
    WATCHED.iter().find(|row| if call.arch == I386 { row.i386 == Some(number) } else { row.number == number })
}

/// The call itself, of which the multiplexers of i386 may have been told; `word` reads the caller's memory.
pub(super) fn direct(call: &Call, word: impl Fn(u64) -> u32) -> Call {
    #[allow(clippy::cast_possible_truncation, reason = "i386 has 32 bits; above them is ipc's version")]
    let which = call.arguments[0] as u32 & 0xffff;
    let of = |table: &[(u32, u64)]| table.iter().find(|(number, _)| *number == which).map(|(_, number)| *number);
    let found = match call.number {
        _ if call.arch != I386 => None,
        number if number == SOCKETCALL.0 => {
            let argument = |n: u64| u64::from(word(call.arguments[1] + 4 * n));
            of(SOCKETCALL.1).map(|number| (number, [0, 1, 2, 3, 4, 5].map(argument)))
        }
        number if number == IPC.0 => {
            let [_, first, second, third, fourth, fifth] = call.arguments;
            of(IPC.1).map(|number| (number, [first, second, third, fourth, fifth, 0]))
        }
        _ => None,
    };
    found.map_or(*call, |(number, arguments)| Call { arch: call.arch, number, arguments })
}

/// Calls that a filter reports besides the points: those that add a filter (`PR_SET_SECCOMP`), and io_uring. The first row
/// of a number counts.
pub(super) const REPORTED: &[(u32, When)] = &[(PRCTL, OneOf(0, &[1, 22, 36])), (SECCOMP, Always), (IO_URING, Always)];

/// The address of the filter (`struct sock_fprog`) that a call of the native convention adds, if it does.
pub(super) fn added_filter(call: &Call) -> Option<u64> {
    let adds = match (call.arch, u32::try_from(call.number)) {
        (NATIVE, Ok(PRCTL)) => call.arguments[0] == 22 && call.arguments[1] == 2,
        (NATIVE, Ok(SECCOMP)) => call.arguments[0] == 1,
        _ => false,
    };
    adds.then_some(call.arguments[2])
}

/// Whether a call has the convention of i386, whatever the program.
pub(super) fn is_i386(call: &Call) -> bool {
    call.arch == I386
}

/// What a call hides, if it does.
pub(super) fn hides(call: &Call) -> Option<&'static str> {
    let (number, arguments) = (native(call.number), &call.arguments);
    let is_it = |own: u32, i386: u32| if call.arch == I386 { i386 == number } else { own == number };
    // Without a filter, seccomp(2) only tells whether it knows the flag.
    let in_earnest = |own: u32| own != SECCOMP || arguments[2] != 0;
    let found =
        HIDES.iter().find(|(own, i386, when, _)| is_it(*own, *i386) && when.holds(arguments) && in_earnest(*own));
    found.map(|(.., what)| *what)
}

impl When {
    /// Whether it is so with these arguments, of which the filter tests the low halves.
    pub(super) fn holds(self, arguments: &[u64; 6]) -> bool {
        #[allow(clippy::cast_possible_truncation, reason = "the upper half is not tested")]
        let low = |at: usize| arguments[at] as u32;
        match self {
            When::Always => true,
            When::AnyBit(at, bits) => low(at) & bits != 0,
            When::NoBit(at, bits) => low(at) & bits == 0,
            When::OneOf(at, values) => values.contains(&low(at)),
        }
    }
}

fn native(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX) & !X32
}

#[cfg(test)]
mod tests {
    use super::{EVERY, ROWS, WATCHED};

    #[test]
    fn each_operation_can_be_named_in_a_plan() {
        let known = leakcheck_plan::OPERATIONS;
        let unknown: Vec<_> = ROWS
            .iter()
            .chain(EVERY)
            .chain(WATCHED)
            .map(|row| row.operation)
            .filter(|one| !known.contains(one))
            .collect();
        assert!(unknown.is_empty() && known.contains(&"rmdir") && known.is_sorted(), "{unknown:?}");
    }
}
