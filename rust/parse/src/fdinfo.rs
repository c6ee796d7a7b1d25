//! `/proc/PID/fdinfo/FD` (proc_pid_fdinfo(5); the kernel's `Documentation/filesystems/proc.rst`, section 3.8).

use super::error::{At, ParseError};
use super::locks::{self, Lock};
use super::scan;

/// What fdinfo says of one open file. A field is `None` where the kernel or the file's type does not print it.
///
/// Some types print names that their users chose, without escaping newlines (io_uring of older kernels its
/// registered files, dma-buf its name), and can so forge a line. Hence the first of several equal keys counts,
/// nothing after the beginning of an io_uring's own lines is read, and a caller believes a type's field only if
/// the link (see [`super::fdlink`]) has that type.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FdInfo {
    /// File offset.
    pub pos: Option<i64>,
    /// Access mode and status flags of open(2), with `O_CLOEXEC` for the FD's own flag.
    pub flags: Option<u32>,
    /// The mount, by the id of `/proc/PID/mountinfo`; since Linux 3.15.
    pub mnt_id: Option<u32>,
    /// Inode, since Linux 5.14. All files on anon_inodefs share one.
    pub ino: Option<u64>,
    /// Locks that this open file description, or for POSIX locks its process, holds; since Linux 4.1.
    pub locks: Vec<Lock>,
    /// Of eventfd(2): unique for the boot; since Linux 5.2.
    pub eventfd_id: Option<u64>,
    /// Of eventfd(2): the counter, printed in hexadecimal.
    pub eventfd_count: Option<u64>,
    /// Of epoll(7): how many files it watches.
    pub epoll_targets: u32,
    /// Of inotify(7): how many watches it has.
    pub inotify_watches: u32,
    /// Of a pidfd: the process, in the reader's PID namespace; 0 if not visible there, −1 once it was reaped.
    pub pid: Option<i32>,
    /// Of a pidfd: the process in each PID namespace from the reader's inwards.
    pub ns_pids: Vec<i32>,
    /// Of a BPF map.
    pub map_id: Option<u32>,
    /// Of a BPF program, and of a BPF link to one.
    pub prog_id: Option<u32>,
    /// Of a BPF link.
    pub link_id: Option<u32>,
    /// Of a BTF object.
    pub btf_id: Option<u32>,
    /// Of timerfd_create(2): `CLOCK_*`.
    pub clockid: Option<u32>,
    /// Of signalfd(2): bit N−1 for signal N.
    pub sigmask: Option<u64>,
    /// Of a unix socket: how many FDs are in flight to it (`SCM_RIGHTS` of unix(7)); since Linux 5.6.
    pub scm_fds: Option<u32>,
    /// Lines of an io_uring(7) were seen.
    pub is_io_uring: bool,
    /// The first line with a known key whose value was not understood: what the record lacks.
    pub malformed: Option<ParseError>,
}

/// Reads fdinfo. Unknown lines are ignored; a known line that is damaged or cut is noted in
/// [`FdInfo::malformed`] and its field left out, so that one odd driver does not hide a whole file.
#[must_use]
pub fn parse(input: &[u8]) -> FdInfo {
    let mut info = FdInfo::default();
    let mut rest = input;
    while !rest.is_empty() && !info.is_io_uring {
        let (line, complete) = match scan::split_once(rest, b'\n') {
            Some((line, after)) => {
                rest = after;
                (line, true)
            }
            None => (std::mem::take(&mut rest), false),
        };
        if let Err(field) = read_line(&mut info, line, complete) {
            let at = At { format: "fdinfo", line };
            info.malformed.get_or_insert_with(|| at.error(field));
        }
    }
    info
}

/// Takes over one line; the error is the name of its field.
fn read_line(info: &mut FdInfo, line: &[u8], complete: bool) -> Result<(), &'static str> {
    // The two repeated lines that have no `key: value` form.
    if line.starts_with(b"tfd:") {
        return count(&mut info.epoll_targets, "tfd", complete);
    }
    if line.starts_with(b"inotify ") {
        return count(&mut info.inotify_watches, "inotify", complete);
    }
    let Some((key, value)) = scan::split_once(line, b':') else {
        return Ok(());
    };
    let value = Value { text: scan::trim_blanks(value), complete };
    match key {
        b"pos" => value.store("pos", &mut info.pos, scan::signed),
        b"flags" => value.store("flags", &mut info.flags, scan::octal),
        b"mnt_id" => value.store("mnt_id", &mut info.mnt_id, scan::unsigned),
        b"ino" => value.store("ino", &mut info.ino, scan::unsigned),
        b"lock" => {
            let lock = locks::parse_line(value.text).ok().filter(|_| complete).ok_or("lock")?;
            info.locks.push(lock);
            Ok(())
        }
        b"eventfd-id" => value.store("eventfd-id", &mut info.eventfd_id, scan::unsigned),
        b"eventfd-count" => value.store("eventfd-count", &mut info.eventfd_count, scan::hex),
        b"Pid" => value.store("Pid", &mut info.pid, scan::signed),
        b"NSpid" if info.ns_pids.is_empty() => {
            info.ns_pids = scan::pid_list(value.text).filter(|_| complete).ok_or("NSpid")?;
            Ok(())
        }
        b"map_id" => value.store("map_id", &mut info.map_id, scan::unsigned),
        b"prog_id" => value.store("prog_id", &mut info.prog_id, scan::unsigned),
        b"link_id" => value.store("link_id", &mut info.link_id, scan::unsigned),
        b"btf_id" => value.store("btf_id", &mut info.btf_id, scan::unsigned),
        b"clockid" => value.store("clockid", &mut info.clockid, scan::unsigned),
        b"sigmask" => value.store("sigmask", &mut info.sigmask, scan::hex),
        b"scm_fds" => value.store("scm_fds", &mut info.scm_fds, scan::unsigned),
        // Which of these comes first depends on the kernel (5.10 has no SqMask).
        b"SqMask" | b"SqThread" | b"UserFiles" => {
            info.is_io_uring = true;
            Ok(())
        }
        _ => Ok(()),
    }
}

fn count(counter: &mut u32, field: &'static str, complete: bool) -> Result<(), &'static str> {
    *counter = counter.saturating_add(1);
    if complete { Ok(()) } else { Err(field) }
}

struct Value<'a> {
    text: &'a [u8],
    complete: bool,
}

impl Value<'_> {
    fn store<T>(
        &self,
        field: &'static str,
        slot: &mut Option<T>,
        read: fn(&[u8]) -> Option<T>,
    ) -> Result<(), &'static str> {
        if slot.is_none() {
            *slot = Some(read(self.text).filter(|_| self.complete).ok_or(field)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::locks::LockKind;
    use super::*;

    /// The four lines that this kernel prints for every file, before a type's own.
    fn with(own: &str) -> FdInfo {
        let info = parse(format!("pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t1038\n{own}").as_bytes());
        assert_eq!((info.pos, info.flags), (Some(0), Some(0o2_000_002)));
        assert_eq!((info.mnt_id, info.ino), (Some(17), Some(1038)));
        assert_eq!(info.malformed, None);
        info
    }

    #[test]
    fn a_plain_file_has_position_flags_mount_and_inode_only() {
        let info = parse(b"pos:\t4096\nflags:\t02100002\nmnt_id:\t43\nino:\t9978130\n");
        let expected = FdInfo {
            pos: Some(4096),
            flags: Some(0o2_100_002),
            mnt_id: Some(43),
            ino: Some(9_978_130),
            ..FdInfo::default()
        };
        assert_eq!(info, expected);
        assert_eq!(parse(b"pos:\t-8\n").pos, Some(-8));
    }

    #[test]
    fn an_eventfd_has_a_hexadecimal_counter_and_an_id() {
        let info = with("eventfd-count:               1f\neventfd-id: 1\neventfd-semaphore: 0\n");
        assert_eq!((info.eventfd_count, info.eventfd_id), (Some(0x1f), Some(1)));
    }

    #[test]
    fn epoll_and_inotify_count_what_they_watch() {
        let epoll = with(
            "tfd:       11 events:       19 data:     7fff0000000b  pos:0 ino:4103 sdev:f\n\
             tfd:        8 events:       19 data:                8  pos:0 ino:40e sdev:10\n",
        );
        assert_eq!((epoll.epoll_targets, epoll.inotify_watches), (2, 0));
        let inotify = with(
            "inotify wd:2 ino:3c4a3 sdev:fe00000 mask:2 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:a3c4030000000000\n\
             inotify wd:1 ino:98410c sdev:fe00000 mask:2 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:0c419800aca61736\n",
        );
        assert_eq!((inotify.epoll_targets, inotify.inotify_watches), (0, 2));
    }

    #[test]
    fn a_pidfd_tells_its_process_until_that_was_reaped() {
        let alive = with("Pid:\t42\nNSpid:\t42\t1\n");
        assert_eq!((alive.pid, alive.ns_pids.as_slice()), (Some(42), [42, 1].as_slice()));
        let reaped = with("Pid:\t-1\nNSpid:\t-1\n");
        assert_eq!((reaped.pid, reaped.ns_pids.as_slice()), (Some(-1), [-1].as_slice()));
    }

    #[test]
    fn bpf_objects_have_their_ids() {
        let map = with(
            "map_type:\t2\nkey_size:\t4\nvalue_size:\t8\nmax_entries:\t4\nmap_flags:\t0x0\nmap_extra:\t0x0\nmemlock:\t344\nmap_id:\t25\nfrozen:\t0\n",
        );
        assert_eq!(map.map_id, Some(25));
        let prog = with(
            "prog_type:\t1\nprog_jited:\t1\nprog_tag:\t59f4a931744dcdc6\nmemlock:\t4096\nprog_id:\t97\nrun_time_ns:\t0\n",
        );
        assert_eq!(prog.prog_id, Some(97));
        let link = with("link_type:\tcgroup\nlink_id:\t6\nprog_tag:\t59f4a931744dcdc6\nprog_id:\t97\ncgroup_id:\t1\n");
        assert_eq!((link.link_id, link.prog_id), (Some(6), Some(97)));
        assert_eq!(with("btf_id:\t3\n").btf_id, Some(3));
    }

    #[test]
    fn timerfd_signalfd_and_unix_sockets_have_their_fields() {
        let timer = with("clockid: 1\nticks: 0\nsettime flags: 00\nit_value: (0, 0)\nit_interval: (0, 0)\n");
        assert_eq!(timer.clockid, Some(1));
        assert_eq!(with("sigmask:\t0000000000000200\n").sigmask, Some(0x200));
        assert_eq!(with("scm_fds: 2\n").scm_fds, Some(2));
    }

    #[test]
    fn locks_are_read_as_in_proc_locks() {
        let info = with(
            "lock:\t1: FLOCK  ADVISORY  WRITE 1 fe:00:9978125 0 EOF\nlock:\t1: OFDLCK ADVISORY  WRITE -1 fe:00:9978127 0 EOF\n",
        );
        let kinds: Vec<_> = info.locks.iter().map(|lock| lock.kind).collect();
        assert_eq!(kinds, [LockKind::Flock, LockKind::Ofd]);
    }

    #[test]
    fn a_file_registered_with_an_io_uring_cannot_forge_a_line() {
        let info = with("SqMask:\t0x3\nSqHead:\t0\nUserFiles:\t1\n    0: x\nscm_fds: 9\nlock:\t1: FLOCK\n");
        assert!(info.is_io_uring);
        assert_eq!((info.scm_fds, info.locks.len()), (None, 0));
    }

    #[test]
    fn a_name_cannot_overrule_an_earlier_line() {
        assert_eq!(with("name:\tx\nino:\t7\n").ino, Some(1038));
    }

    #[test]
    fn unknown_lines_are_ignored() {
        let info = with("pending:\t0\ntotal:\t0\nAPI:\taa:0:80000000000001ff\niff:\ttap0\nno colon\n\ncut");
        assert!(!info.is_io_uring);
    }

    #[test]
    fn a_damaged_or_cut_line_is_noted_and_left_out() {
        for (input, field) in [
            (&b"pos:\tx\nmnt_id:\t3\n"[..], "pos"),
            (b"flags:\t09\nmnt_id:\t3\n", "flags"),
            (b"lock:\t1: FLOCK\nmnt_id:\t3\n", "lock"),
            (b"NSpid:\t\nmnt_id:\t3\n", "NSpid"),
            (b"mnt_id:\t3\nino:\t99", "ino"),
            (b"mnt_id:\t3\ntfd: 3", "tfd"),
        ] {
            let info = parse(input);
            assert_eq!(info.malformed.as_ref().unwrap().field(), field);
            assert_eq!((info.mnt_id, info.pos, info.ino, info.locks.len()), (Some(3), None, None, 0));
        }
    }
}
