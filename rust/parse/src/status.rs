//! `/proc/PID/status` (proc_pid_status(5)): what `stat` does not have.

use super::error::Result;
use super::scan;

/// The fields that tell whose a process is and which PIDs it has. A missing line is `None` or empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The letter of `State:`.
    pub state: Option<u8>,
    /// The process (thread group).
    pub tgid: Option<i32>,
    /// The thread.
    pub pid: Option<i32>,
    /// 0 for a parent outside of the reader's PID namespace.
    pub ppid: Option<i32>,
    /// Real, effective, saved and filesystem user, in the reader's user namespace.
    pub uid: Option<[u32; 4]>,
    /// Real, effective, saved and filesystem group, in the reader's user namespace.
    pub gid: Option<[u32; 4]>,
    /// The PID in each PID namespace from the reader's inwards; since Linux 4.1.
    pub ns_pids: Vec<i32>,
    /// How many threads the process has.
    pub threads: Option<u32>,
    /// How often the thread has gone to sleep.
    pub voluntary_switches: Option<u64>,
}

/// Reads `/proc/PID/status`. Unknown lines are ignored; of equal ones the first counts.
///
/// # Errors
/// If a line has no key, a known line no valid value, or the last line was cut. (The name cannot forge a line: the
/// kernel escapes its newlines.)
pub fn parse(input: &[u8]) -> Result<Status> {
    let mut status = Status::default();
    for at in scan::lines("status", input)? {
        let (key, value) = at.need("key", scan::split_once(at.line, b':'))?;
        let value = scan::trim_blanks(value);
        match key {
            b"State" if status.state.is_none() => status.state = Some(at.need("State", value.first().copied())?),
            b"Tgid" if status.tgid.is_none() => status.tgid = Some(at.need("Tgid", scan::signed(value))?),
            b"Pid" if status.pid.is_none() => status.pid = Some(at.need("Pid", scan::signed(value))?),
            b"PPid" if status.ppid.is_none() => status.ppid = Some(at.need("PPid", scan::signed(value))?),
            b"Uid" if status.uid.is_none() => status.uid = Some(at.need("Uid", scan::numbers(value))?),
            b"Gid" if status.gid.is_none() => status.gid = Some(at.need("Gid", scan::numbers(value))?),
            b"NSpid" if status.ns_pids.is_empty() => status.ns_pids = at.need("NSpid", scan::pid_list(value))?,
            b"Threads" if status.threads.is_none() => {
                status.threads = Some(at.need("Threads", scan::unsigned(value))?);
            }
            b"voluntary_ctxt_switches" if status.voluntary_switches.is_none() => {
                status.voluntary_switches = Some(at.need("voluntary_ctxt_switches", scan::unsigned(value))?);
            }
            _ => {}
        }
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE_ZOMBIE: &[u8] = b"Name:\t) (\\n R 1 2\nState:\tZ (zombie)\nTgid:\t43\nNgid:\t0\nPid:\t43\nPPid:\t1\nTracerPid:\t0\n\
Uid:\t0\t1\t2\t3\nGid:\t4\t5\t6\t4294967295\nFDSize:\t0\nGroups:\t \nNStgid:\t43\nNSpid:\t43\t7\nNSpgid:\t0\nNSsid:\t0\n\
Kthread:\t0\nThreads:\t1\nSigQ:\t1/96365\nSpeculationIndirectBranch:\talways enabled\n\
voluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n";

    #[test]
    fn reads_a_zombie() {
        let expected = Status {
            state: Some(b'Z'),
            tgid: Some(43),
            pid: Some(43),
            ppid: Some(1),
            uid: Some([0, 1, 2, 3]),
            gid: Some([4, 5, 6, u32::MAX]),
            ns_pids: vec![43, 7],
            threads: Some(1),
            voluntary_switches: Some(12),
        };
        assert_eq!(parse(HOSTILE_ZOMBIE).unwrap(), expected);
    }

    #[test]
    fn a_missing_field_is_none() {
        assert_eq!(parse(b"").unwrap(), Status::default());
        assert_eq!(parse(b"Name:\tx\nPid:\t3\n").unwrap(), Status { pid: Some(3), ..Status::default() });
    }

    #[test]
    fn an_error_names_the_field() {
        for (input, field) in [
            (&b"garbage\n"[..], "key"),
            (b"State:\t\n", "State"),
            (b"PPid:\tx\n", "PPid"),
            (b"Uid:\t0\t0\t0\n", "Uid"),
            (b"Gid:\t0\t0\t0\t0\t0\n", "Gid"),
            (b"NSpid:\t\n", "NSpid"),
            (b"NSpid:\t1 x\n", "NSpid"),
            (b"Threads:\t-1\n", "Threads"),
            (b"voluntary_ctxt_switches:\tx\n", "voluntary_ctxt_switches"),
            (b"Threads:\t1", "end of line"),
        ] {
            assert_eq!(parse(input).unwrap_err().field(), field);
        }
    }
}
