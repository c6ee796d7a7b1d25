//! QA-REL-001, 3 and 4: the supervisor is killed in each phase, and each clean-up step fails.
//!
//! Before every call of the supervisor that can change something, seccomp reports it to the test
//! (`common::calls`), which kills the supervisor there, or lets the call fail. What is left is judged by leakcheck.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use common::calls::{Answer, Call, run};
use common::{Place, Ran, finish, guard, root};

const CHANGES: &[i64] = &[
    libc::SYS_openat,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kill,
];

/// A run that ends by itself, and one that reaches its limit.
const RUNS: [&[&str]; 2] = [&["--", "/bin/true"], &["--wall", "0.05", "--", "/bin/sleep", "600"]];

const PHASES: [&str; 5] = ["setup", "execution", "timeout", "cleanup", "verdict"];

/// The phase in the state file: before the first one it is the setup, after its removal the verdict.
struct Phases {
    file: PathBuf,
    begun: bool,
}

impl Phases {
    fn of(place: &Place, number: u16) -> Self {
        Phases { file: place.state_file(number), begun: false }
    }

    fn now(&mut self) -> &'static str {
        let text = fs::read_to_string(&self.file);
        self.begun |= text.is_ok();
        let Ok(text) = text else { return if self.begun { "verdict" } else { "setup" } };
        PHASES.into_iter().find(|phase| text.contains(&format!("\"phase\":\"{phase}\""))).unwrap()
    }
}

fn can_change(call: &Call) -> bool {
    let writes = libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT;
    call.number != libc::SYS_openat || call.arguments[2] & u64::from(writes.cast_unsigned()) != 0
}

/// The box is idle, nothing is left, and the next run is right.
fn assert_healthy(place: &Place, context: &str) {
    place.assert_nothing_left(context);
    assert_eq!(place.health().0, 0, "{context}");
    let ran = place.run(1, &["--", "/bin/true"]);
    assert_eq!((ran.code, ran.status()), (0, "OK"), "{context}: {}", ran.all());
}

#[test]
fn killed_before_any_call_in_each_phase_it_leaves_what_recovery_removes() {
    if !root() {
        return;
    }
    let _guard = guard();
    let (place, mut kills) = (Place::new("phases"), BTreeMap::new());
    for arguments in RUNS {
        for number in 0.. {
            let (mut phases, mut left, mut killed) = (Phases::of(&place, 1), number, None);
            let child = run(place.run_command(1, arguments), CHANGES, |call| {
                let phase = phases.now();
                if !call.by_supervisor || !can_change(call) {
                    return Answer::Happen;
                }
                if left > 0 || killed.is_some() {
                    left -= i32::from(left > 0);
                    return Answer::Happen;
                }
                killed = Some(phase);
                Answer::Kill
            });
            let output = finish(child);
            let Some(phase) = killed else { break };
            let context = format!("{arguments:?}, before call {number}, in {phase}");
            *kills.entry(phase).or_insert(0) += 1;
            assert_eq!(output.status.code(), None, "{context}: it ended by itself");
            let recovered = place.refbox(&["recover"]);
            assert_eq!(recovered.status.code(), Some(0), "{context}: {recovered:?}");
            place.assert_nothing_left(&context);
            let corrupt = fs::read_dir(place.state().join("quarantine")).into_iter().flatten().count();
            assert_eq!(corrupt, 0, "{context}: state files that nobody could read");
        }
        assert_healthy(&place, "after all kills");
    }
    eprintln!("kills by phase: {kills:?}");
    assert_eq!(kills.keys().copied().collect::<BTreeSet<_>>(), PHASES.into_iter().collect());
}

/// A clean-up step: its calls, which of them are its own, and how the kernel can refuse it.
struct Step {
    name: &'static str,
    calls: &'static [i64],
    is: fn(&Call, &str) -> bool,
    error: i32,
}

const STEPS: [Step; 5] = [
    Step { name: "unmount", calls: &[libc::SYS_umount2], is: |_, _| true, error: libc::EBUSY },
    Step {
        name: "cgroup removal",
        calls: &[libc::SYS_rmdir, libc::SYS_unlinkat],
        is: |call, _| call.number == libc::SYS_rmdir || call.arguments[2] & libc::AT_REMOVEDIR as u64 != 0,
        error: libc::EBUSY,
    },
    Step { name: "reaping", calls: &[libc::SYS_wait4, libc::SYS_waitid], is: |_, _| true, error: libc::ECHILD },
    Step {
        name: "closing",
        calls: &[libc::SYS_close],
        is: |call, phase| call.by_supervisor && ["cleanup", "verdict"].contains(&phase),
        error: libc::EIO,
    },
    Step {
        name: "removal of files",
        calls: &[libc::SYS_unlink, libc::SYS_unlinkat],
        is: |call, _| call.number == libc::SYS_unlink || call.arguments[2] & libc::AT_REMOVEDIR as u64 == 0,
        error: libc::EACCES,
    },
];

/// Runs while the `number`-th call of a step fails, or with None all of them. None if there are not so many.
fn run_with_failure(place: &Place, arguments: &[&str], step: &Step, number: Option<usize>) -> Option<Ran> {
    let _ = fs::remove_file(place.result_path(1));
    let (mut phases, mut seen) = (Phases::of(place, 1), 0);
    let child = run(place.run_command(1, arguments), step.calls, |call| {
        let phase = phases.now();
        // Before the first state, there is nothing to clean up.
        if !phases.begun || !(step.is)(call, phase) {
            return Answer::Happen;
        }
        seen += 1;
        if number.is_none_or(|number| seen == number + 1) { Answer::Fail(step.error) } else { Answer::Happen }
    });
    let ran = place.ran(1, finish(child));
    if seen <= number.unwrap_or(0) {
        assert_eq!(ran.code, 0, "without a failure: {}", ran.all());
        return None;
    }
    Some(ran)
}

#[test]
fn a_clean_up_step_that_fails_is_told_and_recovery_makes_the_box_idle_again() {
    if !root() {
        return;
    }
    let _guard = guard();
    let (place, mut failures) = (Place::new("steps"), BTreeMap::new());
    for step in &STEPS {
        for arguments in RUNS {
            // That all of them fail takes refbox's patience each time.
            let all = (arguments == RUNS[0]).then_some(None);
            for number in all.into_iter().chain((0..).map(Some)) {
                let Some(ran) = run_with_failure(&place, arguments, step, number) else { break };
                *failures.entry(step.name).or_insert(0) += 1;
                let context = format!("{}, call {number:?}: {}", step.name, ran.all());
                if ran.code == 0 {
                    // It did not need this call: then nothing is left.
                    place.assert_nothing_left(&context);
                    continue;
                }
                assert!(ran.code == 1 && ["IE", "no status"].contains(&ran.status()), "{context}");
                let in_service = place.health().0 == 0;
                if in_service {
                    place.assert_nothing_left(&context);
                } else {
                    // Out of service, and says so: nobody inherits what is left.
                    let recovered = place.refbox(&["recover"]);
                    assert_eq!(recovered.status.code(), Some(0), "{context}: {recovered:?}");
                    place.assert_nothing_left(&context);
                }
            }
        }
        assert_healthy(&place, step.name);
    }
    eprintln!("failures by step: {failures:?}");
    assert_eq!(failures.len(), STEPS.len());
}
