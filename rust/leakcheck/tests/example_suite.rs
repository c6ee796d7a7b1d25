//! An example to copy: a suite whose tests must leave no process and no descriptor behind.
//!
//! Every test of the file begins with a guard, so that they wait for each other (see [`leakcheck::testing`]). In your own project:
//!
//! ```toml
//! [dev-dependencies]
//! leakcheck = "0.1"
//! ```

use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::process::{Command, Stdio};
use std::time::Duration;

use leakcheck::testing::{NoLeaks, Options, describe, verify_none};
use leakcheck::{Kind, Verdict};

#[test]
fn a_test_that_leaves_nothing_passes() {
    let _guard = NoLeaks::new();
    let file = File::open("/proc/self/status").unwrap();
    assert!(file.metadata().unwrap().is_file());
}

#[test]
fn a_test_that_waits_for_its_child_passes() {
    let _guard = NoLeaks::new();
    let output = Command::new("echo").arg("hello").output().unwrap();
    assert_eq!(output.stdout, b"hello\n");
}

#[test]
fn a_closure_is_verified_and_its_result_comes_through() {
    let status = verify_none(|| Command::new("true").status().unwrap());
    assert!(status.success());
}

/// Plant, detect, release, clean: a test of the guard itself, which expects the leak.
#[test]
fn a_child_that_is_left_running_is_reported_until_it_is_gone() {
    let guard = Options::default().settle(Duration::from_millis(50)).guard();
    let mut child = Command::new("sleep").arg("300").stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let report = guard.report().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();

    assert_eq!(report.verdict, Verdict::Leaked);
    assert_eq!(report.leaks.len(), 1, "{}", describe(&report));
    assert_eq!(report.leaks[0].kind, Kind::Process);
    assert!(report.leaks[0].label.contains("sleep 300"), "{}", describe(&report));

    let _guard = NoLeaks::new();
}

#[test]
fn a_descriptor_that_is_left_open_fails_the_test_and_is_named() {
    let (guard, line) = (Options::default().settle(Duration::from_millis(50)).guard(), line!());
    let file = File::open("/etc/passwd").unwrap();
    let message =
        *std::panic::catch_unwind(AssertUnwindSafe(|| drop(guard))).unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("leaked 1:") && message.contains("/etc/passwd"), "{message}");
    assert!(message.contains(&format!("{}:{line}:", file!())), "{message}");
    drop(file);
}

#[test]
fn a_zombie_is_residue_too() {
    let guard = Options::default().settle(Duration::from_millis(200)).guard();
    let mut child = Command::new("true").spawn().unwrap();
    let report = guard.report().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(report.leaks[0].label.starts_with("zombie"), "{}", describe(&report));
}

#[test]
fn residue_that_is_known_can_be_allowed_with_a_reason() {
    let guard = Options::default().settle(Duration::from_millis(50)).allow(Kind::Fd, "a log that stays open").guard();
    let log = File::open("/etc/passwd").unwrap();
    drop(guard);
    drop(log);
}

#[test]
fn a_failing_test_keeps_its_own_message() {
    let failing = || {
        let _guard = Options::default().settle(Duration::from_millis(50)).guard();
        std::mem::forget(File::open("/dev/null").unwrap());
        panic!("the test's own");
    };
    let message = *std::panic::catch_unwind(failing).unwrap_err().downcast::<&str>().unwrap();
    assert_eq!(message, "the test's own");
}

#[test]
fn a_second_guard_in_one_test_is_refused_instead_of_waiting_for_ever() {
    let _guard = NoLeaks::new();
    let second = std::panic::catch_unwind(|| drop(NoLeaks::new()));
    let message = *second.unwrap_err().downcast::<&str>().unwrap();
    assert!(message.contains("already has a guard"), "{message}");
}
