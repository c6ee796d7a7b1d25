//! `/proc/PID/stat` (proc_pid_stat(5)), up to the start time.

use super::error::{At, Result};

/// What identifies a process and says how it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat<'a> {
    /// Field 1.
    pub pid: i32,
    /// Field 2, without its parentheses: any bytes but NUL, at most 15 for user processes (`TASK_COMM_LEN`), up to
    /// 63 for kernel workers.
    pub comm: &'a [u8],
    /// Field 3: `R`, `S`, `D`, `Z`, `T`, `t`, `X`, `I` …
    pub state: u8,
    /// Field 4; 0 for a process whose parent is outside of the reader's PID namespace.
    pub ppid: i32,
    /// Field 5; −1 while the process is being released.
    pub pgrp: i32,
    /// Field 6; −1 while the process is being released.
    pub session: i32,
    /// Field 7: device number of the controlling terminal, 0 for none.
    pub tty_nr: i32,
    /// Field 9: `PF_*` of the kernel's `include/linux/sched.h`.
    pub flags: u32,
    /// Field 10: minor page faults. A fork makes the parent's pages copy-on-write, so its next write to each is one.
    pub minflt: u64,
    /// Field 14, in clock ticks (`sysconf(_SC_CLK_TCK)`).
    pub utime: u64,
    /// Field 15, in clock ticks.
    pub stime: u64,
    /// Field 20; 0 while the process is being released.
    pub num_threads: u32,
    /// Field 22: clock ticks since boot, in the reader's time namespace since Linux 5.5.
    pub start_time: u64,
}

/// Reads the first 22 fields of `/proc/PID/stat` or `/proc/PID/task/TID/stat`.
///
/// The comm is what stands between the first `(` and the *last* `)`, since it may hold both and newlines too, and
/// the fields after it are numbers.
///
/// # Errors
/// If one of those fields is missing, out of range or not ended by a space or newline.
pub fn parse(input: &[u8]) -> Result<Stat<'_>> {
    let at = At { format: "stat", line: input };
    let open = at.need("comm", memchr::memchr(b'(', input))?;
    let close = at.need("comm", memchr::memrchr(b')', input).filter(|close| *close > open))?;
    let mut before = Scanner(&input[..open]);
    let pid = at.need("pid", before.signed32().filter(|_| before.0.is_empty()))?;
    let comm = &input[open + 1..close];
    let [b' ', state, b' ', rest @ ..] = &input[close + 1..] else {
        return Err(at.error("state"));
    };
    let mut fields = Scanner(rest);
    let ppid = at.need("ppid", fields.signed32())?;
    let pgrp = at.need("pgrp", fields.signed32())?;
    let session = at.need("session", fields.signed32())?;
    let tty_nr = at.need("tty_nr", fields.signed32())?;
    at.need("tpgid", fields.skip(1))?;
    let flags = at.need("flags", fields.unsigned().and_then(|flags| flags.try_into().ok()))?;
    let minflt = at.need("minflt", fields.unsigned())?;
    at.need("page fault counts", fields.skip(3))?;
    let utime = at.need("utime", fields.unsigned())?;
    let stime = at.need("stime", fields.unsigned())?;
    at.need("children's times and priority", fields.skip(4))?;
    let num_threads = at.need("num_threads", fields.unsigned().and_then(|n| n.try_into().ok()))?;
    at.need("itrealvalue", fields.skip(1))?;
    let start_time = at.need("starttime", fields.unsigned())?;
    let state = *state;
    Ok(Stat { pid, comm, state, ppid, pgrp, session, tty_nr, flags, minflt, utime, stime, num_threads, start_time })
}

/// A cursor over fields that each end with one space or newline.
///
/// By hand and not by splitting, because a snapshot parses thousands of these and most fields are only skipped.
struct Scanner<'a>(&'a [u8]);

impl Scanner<'_> {
    fn unsigned(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for (at, byte) in self.0.iter().enumerate() {
            let digit = byte.wrapping_sub(b'0');
            if digit < 10 {
                value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
            } else if at > 0 && matches!(byte, b' ' | b'\n') {
                self.0 = &self.0[at + 1..];
                return Some(value);
            } else {
                return None;
            }
        }
        None
    }

    fn signed32(&mut self) -> Option<i32> {
        match self.0 {
            [b'-', digits @ ..] => {
                self.0 = digits;
                0_i32.checked_sub_unsigned(self.unsigned()?.try_into().ok()?)
            }
            _ => self.unsigned()?.try_into().ok(),
        }
    }

    fn skip(&mut self, fields: usize) -> Option<()> {
        for _ in 0..fields {
            let space = self.0.iter().position(|byte| *byte == b' ').filter(|at| *at > 0)?;
            self.0 = &self.0[space + 1..];
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"5648 (head) R 5646 5646 4201 0 -1 4194304 103 0 0 0 7 8 0 0 20 0 1 0 71831 2998272 415 18446744073709551615 94017488793600 94017488817705 140735719213536 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 94017488833552 94017488835168 94018296213504 140735719217851 140735719217870 140735719217870 140735719219178 0\n";
    const HOSTILE_ZOMBIE: &[u8] = b"43 () (\n R 1 2) Z 1 0 0 0 -1 4227148 219 0 0 0 0 0 0 0 20 0 1 0 78225 0 0 18446744073709551615 0 0 0 0 0 0 0 285216768 2 1 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n";

    #[test]
    fn reads_a_plain_process() {
        let expected = Stat {
            pid: 5648,
            comm: b"head",
            state: b'R',
            ppid: 5646,
            pgrp: 5646,
            session: 4201,
            tty_nr: 0,
            flags: 4_194_304,
            minflt: 103,
            utime: 7,
            stime: 8,
            num_threads: 1,
            start_time: 71831,
        };
        assert_eq!(parse(HEAD).unwrap(), expected);
    }

    #[test]
    fn a_comm_that_imitates_the_rest_of_the_line_stays_a_comm() {
        let stat = parse(HOSTILE_ZOMBIE).unwrap();
        assert_eq!((stat.pid, stat.comm, stat.state), (43, b") (\n R 1 2".as_slice(), b'Z'));
        assert_eq!((stat.ppid, stat.start_time), (1, 78225));
    }

    #[test]
    fn a_process_in_release_has_negative_groups() {
        let stat = parse(b"9 (a) X 0 -1 -1 0 -1 4 0 0 0 0 0 0 0 0 20 0 0 0 5 0 ").unwrap();
        assert_eq!((stat.pgrp, stat.session, stat.num_threads), (-1, -1, 0));
    }

    #[test]
    fn every_truncation_before_the_end_of_field_22_is_an_error() {
        let end = memchr::memmem::find(HEAD, b"71831 ").unwrap() + 6;
        for cut in 0..end {
            assert!(parse(&HEAD[..cut]).is_err(), "{cut}");
        }
        assert!(parse(&HEAD[..end]).is_ok());
    }

    #[test]
    fn an_error_names_the_field() {
        for (input, field) in [
            (&b"1 comm R 1"[..], "comm"),
            (b"1 )x( R 1", "comm"),
            (b"x (a) R 1 ", "pid"),
            (b"1  (a) R 1 ", "pid"),
            (b"1 (a)R 1 ", "state"),
            (b"1 (a) R 2147483648 ", "ppid"),
            (b"1 (a) R 1 1 1 0 -1 4294967296 ", "flags"),
            (b"1 (a) R 1 1 1 0 -1 4 0 0 0 0 18446744073709551616 ", "utime"),
        ] {
            assert_eq!(parse(input).unwrap_err().field(), field);
        }
    }
}
