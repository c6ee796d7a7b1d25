//! Where a command waits until its owner has changed something and lets it go on.

use std::os::fd::AsFd as _;
use std::time::Duration;

use leakcheck_sys::trace::Resume;
use leakcheck_sys::wait_until;

use super::Tracer;
use super::request::Instant;

/// A stopped thread that waits for the owner.
pub(super) struct Waiting {
    pub(super) pid: i32,
    run: usize,
    resumed: Resume,
}

impl Tracer {
    /// Keeps a thread at an instant at which its run waits; else it goes on.
    pub(super) fn wait_for_owner(&mut self, pid: i32, instant: Option<Instant>, resumed: Resume) -> Option<Resume> {
        let run = self.roles[self.tasks.get(&pid)?.role].run;
        let Some(instant) = instant.filter(|one| self.runs[run].request.hold.contains(one)) else {
            return Some(resumed);
        };
        self.runs[run].note(&serde_json::json!({"held": instant, "pid": pid}));
        self.waiting.push(Waiting { pid, run, resumed });
        None
    }

    /// Continues what the owner lets go on. If the owner is gone, nothing waits.
    pub(super) fn release_waiting(&mut self) {
        for at in (0..self.waiting.len()).rev() {
            let Some(release) = &self.runs[self.waiting[at].run].release else { continue };
            if wait_until(&[release.as_fd()], Duration::ZERO).unwrap_or(true) {
                let _ = rustix::io::read(release, &mut [0u8; 1]);
                let one = self.waiting.swap_remove(at);
                self.resume(one.pid, one.resumed);
            }
        }
    }
}
