//! The status of a run, decided from evidence alone.

use std::time::Duration;

use serde::Serialize;

use crate::limits::Limits;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Status {
    #[serde(rename = "OK")]
    Ok,
    /// Time limit exceeded.
    #[serde(rename = "TLE")]
    Time,
    /// Memory limit exceeded.
    #[serde(rename = "MLE")]
    Memory,
    /// Run-time error: an exit code other than 0, or a signal.
    #[serde(rename = "RE")]
    Runtime,
    /// Output limit exceeded.
    #[serde(rename = "OLE")]
    Output,
    /// Internal error: the sandbox failed; this says nothing about the program.
    #[serde(rename = "IE")]
    Internal,
    /// Compile error.
    #[serde(rename = "CE")]
    Compile,
}

/// Why the payload ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It ended by itself, with this wait status.
    Ended(i32),
    /// Killed at its wall-clock limit.
    Wall,
    /// Killed at its limit of processor time.
    Cpu,
    /// Killed because its output exceeded the limit.
    Output,
    /// Killed because the supervisor received this signal.
    Signalled(i32),
    /// It never ran: the sandbox could not be set up.
    Failed(String),
    /// It never ran: exec failed.
    NotExecutable(String),
    /// Process 1 ended without a message.
    InitDied,
}

/// The observations of an execution.
#[derive(Clone, Debug)]
pub(crate) struct Execution {
    pub(crate) cause: Cause,
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    pub(crate) peak: Option<u64>,
    /// Processes that the kernel killed at the memory limit.
    pub(crate) oom_kills: u64,
    /// Bytes of output that were read, including those above the limit.
    pub(crate) output: u64,
}

/// A status with its reason.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) status: Status,
    pub(crate) reason: String,
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
}

impl Verdict {
    pub(crate) fn new(status: Status, reason: impl Into<String>) -> Self {
        Verdict { status, reason: reason.into(), exit_code: None, signal: None }
    }
}

/// The status of an execution under `limits`. A failure of the sandbox itself comes first, then the limit that was reached
/// first.
pub(crate) fn judge(seen: &Execution, limits: &Limits) -> Verdict {
    let internal = |reason: &str| Verdict::new(Status::Internal, reason);
    match &seen.cause {
        Cause::Failed(why) | Cause::NotExecutable(why) => return internal(why),
        Cause::InitDied => return internal("process 1 of the box died"),
        Cause::Signalled(signal) => return internal(&format!("the supervisor received {}", signal_name(*signal))),
        Cause::Ended(_) | Cause::Wall | Cause::Cpu | Cause::Output => {}
    }
    let (exit_code, signal) = match seen.cause {
        Cause::Ended(status) if libc::WIFEXITED(status) => (Some(libc::WEXITSTATUS(status)), None),
        Cause::Ended(status) => (None, Some(libc::WTERMSIG(status))),
        _ => (None, None),
    };
    // The rlimit counts ticks, which may be a third too many; a program that sends itself the signal has hardly run.
    let by_rlimit = signal == Some(libc::SIGXCPU) && seen.cpu >= limits.cpu / 2;
    let (status, reason) = if seen.output > limits.output || seen.cause == Cause::Output {
        (Status::Output, format!("more than {} bytes of output", limits.output))
    } else if seen.oom_kills > 0 {
        (Status::Memory, format!("more than {} bytes of memory: {} processes killed", limits.memory, seen.oom_kills))
    } else if seen.cause == Cause::Wall {
        (Status::Time, format!("more than {} s of wall-clock time", limits.wall.as_secs_f64()))
    } else if seen.cause == Cause::Cpu || seen.cpu >= limits.cpu || by_rlimit {
        (Status::Time, format!("more than {} s of processor time", limits.cpu.as_secs_f64()))
    } else {
        match (exit_code, signal) {
            (_, Some(libc::SIGXFSZ)) => (Status::Output, format!("a file of more than {} bytes", limits.file_size)),
            (_, Some(signal)) => (Status::Runtime, format!("killed by {}", signal_name(signal))),
            (Some(0), None) => (Status::Ok, "exit code 0".to_owned()),
            (Some(code), None) => (Status::Runtime, format!("exit code {code}")),
            (None, None) => (Status::Internal, "the payload ended in no known way".to_owned()),
        }
    };
    Verdict { status, reason, exit_code, signal }
}

/// `SIGSEGV` for 11.
pub(crate) fn signal_name(number: i32) -> String {
    const NAMES: [&str; 32] = [
        "0", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    match usize::try_from(number).ok().and_then(|n| NAMES.get(n)) {
        Some(name) => format!("SIG{name}"),
        None => format!("signal {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            wall: Duration::from_secs(2),
            cpu: Duration::from_secs(1),
            memory: 1 << 20,
            processes: 8,
            file_size: 512,
            output: 100,
        }
    }

    fn seen(cause: Cause) -> Execution {
        Execution { cause, wall: Duration::ZERO, cpu: Duration::ZERO, peak: None, oom_kills: 0, output: 0 }
    }

    const EXIT_0: Cause = Cause::Ended(0);

    #[test]
    fn every_status_follows_from_its_evidence() {
        let table: [(Execution, Status, &str); 15] = [
            (seen(EXIT_0), Status::Ok, "exit code 0"),
            (seen(Cause::Ended(3 << 8)), Status::Runtime, "exit code 3"),
            (seen(Cause::Ended(libc::SIGSEGV)), Status::Runtime, "killed by SIGSEGV"),
            (seen(Cause::Ended(libc::SIGXFSZ)), Status::Output, "a file of more than 512 bytes"),
            (seen(Cause::Ended(libc::SIGXCPU)), Status::Runtime, "killed by SIGXCPU"),
            (
                Execution { cpu: Duration::from_millis(767), ..seen(Cause::Ended(libc::SIGXCPU)) },
                Status::Time,
                "more than 1 s of processor time",
            ),
            (seen(Cause::Wall), Status::Time, "more than 2 s of wall-clock time"),
            (seen(Cause::Cpu), Status::Time, "more than 1 s of processor time"),
            (seen(Cause::Output), Status::Output, "more than 100 bytes of output"),
            (seen(Cause::InitDied), Status::Internal, "process 1 of the box died"),
            (seen(Cause::Failed("x".into())), Status::Internal, "x"),
            (seen(Cause::Signalled(15)), Status::Internal, "the supervisor received SIGTERM"),
            // A parent that ignores that the limit killed its child does not hide it.
            (
                Execution { oom_kills: 1, ..seen(EXIT_0) },
                Status::Memory,
                "more than 1048576 bytes of memory: 1 processes killed",
            ),
            // It ended between two readings of its time.
            (
                Execution { cpu: Duration::from_secs(1), ..seen(EXIT_0) },
                Status::Time,
                "more than 1 s of processor time",
            ),
            (Execution { output: 101, ..seen(EXIT_0) }, Status::Output, "more than 100 bytes of output"),
        ];
        for (execution, status, reason) in table {
            let verdict = judge(&execution, &limits());
            assert_eq!((verdict.status, verdict.reason.as_str()), (status, reason), "{execution:?}");
        }
    }

    #[test]
    fn a_failed_sandbox_is_never_the_programs_fault() {
        for cause in [Cause::InitDied, Cause::Failed("x".into()), Cause::Signalled(2)] {
            let all = Execution { oom_kills: 9, output: 999, cpu: Duration::from_secs(9), ..seen(cause) };
            assert_eq!(judge(&all, &limits()).status, Status::Internal);
        }
    }
}
