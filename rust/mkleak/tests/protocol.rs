//! The protocol: what mkleak prints, what it accepts, and what it leaves in each case.

mod common;

use std::collections::BTreeMap;
use std::process::{Command, Output};

use common::{Directory, Mkleak, in_disposable_place};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

fn mkleak(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mkleak")).args(arguments).output().expect("mkleak starts")
}

/// mkleak, started by a shell that changes its environment first.
fn after(preparation: &str, arguments: &[&str]) -> Mkleak {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{preparation}; exec \"$@\""), "sh", env!("CARGO_BIN_EXE_mkleak")]).args(arguments);
    Mkleak::start_as(command)
}

#[test]
fn the_list_has_48_plants_and_two_of_each_kind() {
    let list: Vec<Value> = serde_json::from_slice(&mkleak(&["--list", "--json"]).stdout).unwrap();
    let mut kinds = BTreeMap::new();
    for plant in &list {
        assert!(plant["needs"].is_array() && plant["what"].is_string(), "{plant}");
        *kinds.entry(plant["kind"].as_str().unwrap()).or_insert(0) += 1;
    }
    let names: Vec<_> = kinds.keys().copied().collect();
    assert_eq!(
        names,
        [
            "bpf",
            "cgroup",
            "fd",
            "file",
            "ipc",
            "key",
            "lock",
            "lockfile",
            "loop",
            "mount",
            "namespace",
            "net",
            "process",
            "sysctl"
        ]
    );
    assert!(kinds.values().all(|&plants| plants >= 2), "{kinds:?}");
    assert!(list.len() >= 48);
    let plain = String::from_utf8(mkleak(&["--list"]).stdout).unwrap();
    let first: Vec<_> = plain.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert!(list.iter().map(|plant| plant["name"].as_str().unwrap()).eq(first));
}

#[test]
fn an_unknown_plant_is_a_usage_error_that_names_similar_plants() {
    let output = mkleak(&["zombi"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "mkleak: unknown plant \"zombi\"; near it: zombie\n");
}

#[test]
fn usage_errors_are_one_line_and_plant_nothing() {
    for (arguments, said) in [
        (&["file-temp", "--dir", "/nonexistent"][..], "\"/nonexistent\""),
        (&["file-temp", "--dir", "/dev/null"], "not a directory"),
        (&["file-temp", "--dir"], "--dir needs a directory"),
        (&["file-temp", "--hodl"], "\"--hodl\""),
        (&["file-temp", "file-dir"], "\"file-dir\""),
        (&[], "no plant named"),
    ] {
        let output = mkleak(arguments);
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && complaint.lines().count() == 1 && complaint.contains(said), "{complaint}");
    }
}

#[test]
fn without_hold_it_plants_at_once_and_one_line_ends_it() {
    let dir = Directory::new();
    let mut mkleak = Mkleak::start(&["file-temp", "--dir", dir.as_str()]);
    let facts = mkleak.facts("READY ").unwrap();
    assert_eq!(facts["kind"], "file");
    assert_eq!(dir.entries(), [std::path::Path::new(facts["path"].as_str().unwrap())]);
    mkleak.send("\n");
    assert_eq!(mkleak.line().as_deref(), Some("CLEAN"));
    assert_eq!(mkleak.line(), None);
    assert!(mkleak.end().0.success());
    assert!(dir.entries().is_empty());
}

#[test]
fn lines_sent_in_advance_are_used_one_per_step() {
    let dir = Directory::new();
    let mut mkleak = Mkleak::start(&["file-temp", "--hold", "--dir", dir.as_str()]);
    mkleak.send("\n\n\n");
    assert!(mkleak.facts("WAITING ").is_some());
    assert!(mkleak.facts("READY ").is_some());
    assert_eq!(mkleak.line().as_deref(), Some("CLEAN"));
    assert_eq!(mkleak.line(), None);
    assert!(mkleak.end().0.success());
}

#[test]
fn the_end_of_stdin_before_planting_removes_the_scaffolding_and_plants_nothing() {
    let dir = Directory::new();
    let mut mkleak = Mkleak::start(&["lock-flock", "--hold", "--dir", dir.as_str()]);
    assert_eq!(mkleak.facts("WAITING ").unwrap()["pid"], mkleak.pid());
    assert_eq!(dir.entries().len(), 1);
    mkleak.hang_up();
    assert_eq!(mkleak.line(), None);
    assert!(mkleak.end().0.success());
    assert!(dir.entries().is_empty());
}

#[test]
fn each_terminating_signal_cleans_up() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let dir = Directory::new();
        let mut mkleak = Mkleak::start(&["file-hidden-deep", "--hold", "--dir", dir.as_str()]);
        mkleak.send("\n");
        assert!(mkleak.facts("WAITING ").is_some() && mkleak.facts("READY ").is_some());
        mkleak.signal(signal);
        assert_eq!(mkleak.line().as_deref(), Some("CLEAN"), "{signal:?}");
        assert!(mkleak.end().0.success());
        assert!(dir.entries().is_empty());
    }
}

#[test]
fn a_killed_mkleak_leaves_the_leak() {
    let dir = Directory::new();
    let mut mkleak = Mkleak::start(&["file-temp", "--dir", dir.as_str()]);
    assert!(mkleak.facts("READY ").is_some());
    mkleak.signal(Signal::KILL);
    assert_eq!(mkleak.end().0.code(), None);
    assert_eq!(dir.entries().len(), 1);
}

#[test]
fn a_plant_that_fails_halfway_is_undone() {
    let dir = Directory::new();
    // Five FDs: three, the one for signals, and the file to lock, but not its copy for the child.
    let mut mkleak = after("ulimit -n 5", &["lock-orphaned", "--hold", "--dir", dir.as_str()]);
    mkleak.send("\n");
    assert!(mkleak.facts("WAITING ").is_some());
    assert_eq!(mkleak.line(), None);
    let (status, complaint) = mkleak.end();
    assert_eq!(status.code(), Some(4), "{complaint}");
    assert!(complaint.starts_with("mkleak: lock-orphaned: dup ") && complaint.lines().count() == 1, "{complaint}");
    assert!(dir.entries().is_empty());
}

#[test]
fn a_caller_that_ignores_sigchld_still_gets_its_zombie() {
    in_disposable_place("a_caller_that_ignores_the_death_of_children_gets_its_zombie_all_the_same", |_| {
        let mut mkleak = after("trap '' CHLD", &["zombie"]);
        assert!(mkleak.facts("READY ").is_some());
        mkleak.send("\n");
        assert_eq!(mkleak.line().as_deref(), Some("CLEAN"));
    });
}

#[test]
fn an_orphan_holds_neither_the_callers_pipes_nor_its_directory() {
    in_disposable_place("an_orphan_holds_neither_the_callers_pipes_nor_its_directory", |dir| {
        std::env::set_current_dir(dir).unwrap();
        let mut mkleak = Mkleak::start(&["orphan"]);
        let pid = mkleak.facts("READY ").unwrap()["pid"].as_i64().unwrap();
        mkleak.signal(Signal::KILL);
        // If the orphan held the pipe, this would run into the time limit.
        assert_eq!(mkleak.line(), None);
        let link = |entry: &str| std::fs::read_link(format!("/proc/{pid}/{entry}")).unwrap();
        assert_eq!(link("cwd"), std::path::Path::new("/"));
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        assert_eq!(fds, 3);
        assert_eq!(link("fd/1"), std::path::Path::new("/dev/null"));
        // It was alive just now, and nothing else ends it: the pid is still its own.
        let orphan = i32::try_from(pid).ok().filter(|&pid| pid > 1).and_then(Pid::from_raw);
        let pidfd = pidfd_open(orphan.unwrap(), PidfdFlags::empty()).unwrap();
        pidfd_send_signal(&pidfd, Signal::KILL).unwrap();
    });
}

#[test]
fn the_disguised_process_shows_another_name_and_no_environment() {
    in_disposable_place("the_wiped_process_shows_another_name_and_no_environment", |_| {
        let mut mkleak = after("export RUN_TOKEN=visible", &["renamed-wiped"]);
        let pid = mkleak.facts("READY ").unwrap()["pid"].as_u64().unwrap();
        let read = |entry: &str| std::fs::read(format!("/proc/{pid}/{entry}")).unwrap();
        assert_eq!(read("comm"), b"kworker/u8:3-ev\n");
        assert!(read("cmdline").starts_with(b"kworker/u8:3"));
        assert!(read("environ").iter().all(|&byte| byte == 0));
        mkleak.send("\n");
        assert_eq!(mkleak.line().as_deref(), Some("CLEAN"));
    });
}
