//! Identifies a process: its number alone may belong to another process later.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::error::{Doing, Result};
use crate::sabotage::removed;

/// A process of some boot.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    pub(crate) pid: i32,
    /// Field 22 of /proc/PID/stat (proc(5)): clock ticks after boot.
    pub(crate) start_time: u64,
    pub(crate) boot_id: String,
}

impl Identity {
    /// The identity of this process.
    pub(crate) fn own() -> Result<Self> {
        let pid = rustix::process::getpid().as_raw_pid();
        let start_time = start_time(&read("/proc/self/stat")?).unwrap_or_default();
        Ok(Identity { pid, start_time, boot_id: boot_id()? })
    }

    /// Whether it is still alive; a zombie is not.
    pub(crate) fn lives(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let zombie = fields(&stat).next().is_some_and(|state| state == "Z" || state == "X");
        if removed("pid-alone") {
            return !stat.is_empty();
        }
        !zombie && start_time(&stat) == Some(self.start_time) && boot_id().is_ok_and(|now| now == self.boot_id)
    }
}

fn boot_id() -> Result<String> {
    Ok(read("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).doing("read", path)
}

/// The fields from the third on: the name before them may contain anything, even closing parentheses.
fn fields(stat: &str) -> impl Iterator<Item = &str> {
    stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace()
}

fn start_time(stat: &str) -> Option<u64> {
    fields(stat).nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_a_hostile_name() {
        let stat = "7 (a) R 1) S 1 7 7 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 1 0 4711 8 9 10";
        assert_eq!(start_time(stat), Some(4711));
        assert_eq!(start_time("7 (short) S 1"), None);
    }

    #[test]
    fn this_process_lives_and_an_earlier_one_with_its_number_does_not() {
        let own = Identity::own().unwrap();
        assert!(own.lives());
        assert!(!Identity { start_time: own.start_time + 1, ..own.clone() }.lives());
        assert!(!Identity { boot_id: "another".to_owned(), ..own }.lives());
    }
}
