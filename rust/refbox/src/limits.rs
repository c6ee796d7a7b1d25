//! The limits of a payload, and the bounds of this host.

use std::time::Duration;

use crate::error::{Error, Result};

/// Minimum: the box's own few files need this much.
const LEAST_MEMORY: u64 = 1 << 20;

/// The limits of one execution.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    /// Bytes, including swap and the box's temporary files.
    pub(crate) memory: u64,
    /// Processes and threads at the same time.
    pub(crate) processes: u32,
    /// Bytes of any one file.
    pub(crate) file_size: u64,
    /// Bytes of stdout and stderr together.
    pub(crate) output: u64,
}

/// The host's bounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    pub(crate) memory: u64,
    pub(crate) pid_max: u32,
    pub(crate) cpus: u32,
}

impl Host {
    pub(crate) fn new() -> Self {
        let info = rustix::system::sysinfo();
        let pid_max = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok();
        Host {
            memory: info.totalram as u64 * u64::from(info.mem_unit),
            pid_max: pid_max.and_then(|text| text.trim().parse().ok()).unwrap_or(32_768),
            cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1)),
        }
    }
}

impl Limits {
    /// Refuses limits that the host cannot provide.
    pub(crate) fn check(&self, host: &Host) -> Result<()> {
        if self.memory < LEAST_MEMORY {
            return Err(Error::Usage(format!("--memory {}: give at least {LEAST_MEMORY} bytes", self.memory)));
        }
        if self.memory > host.memory {
            return Err(Error::Usage(format!(
                "--memory {}: above this host's memory of {} bytes",
                self.memory, host.memory
            )));
        }
        // Output waits in the supervisor's memory while its reader is slow.
        if self.output > host.memory {
            return Err(Error::Usage(format!(
                "--output {}: above this host's memory of {} bytes",
                self.output, host.memory
            )));
        }
        if self.processes > host.pid_max {
            return Err(Error::Usage(format!(
                "--processes {}: above this host's pid_max of {}",
                self.processes, host.pid_max
            )));
        }
        Ok(())
    }

    /// Limits for a compiler, which needs more than most programs.
    pub(crate) fn of_compiler(host: &Host) -> Self {
        Limits {
            wall: Duration::from_secs(60),
            cpu: Duration::from_secs(60),
            memory: (1 << 30).min(host.memory),
            processes: 128.min(host.pid_max),
            file_size: 256 << 20,
            output: 1 << 20,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host = Host { memory: 8 << 30, pid_max: 32_768, cpus: 2 };

    #[test]
    fn a_limit_above_what_the_host_has_is_refused() {
        let fine = Limits::of_compiler(&HOST);
        assert!(fine.check(&HOST).is_ok());
        let wrong = [
            Limits { memory: (8 << 30) + 1, ..fine.clone() },
            Limits { memory: 4096, ..fine.clone() },
            Limits { output: 9 << 30, ..fine.clone() },
            Limits { processes: 40_000, ..fine },
        ];
        for limits in wrong {
            assert_eq!(limits.check(&HOST).unwrap_err().exit_code(), 2);
        }
    }
}
