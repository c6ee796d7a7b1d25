//! The wire to the warden and to its spawners: requests, answers, refusals, the end of the owner, and steps that fail.

mod common;

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Arena, Owner, PATIENCE, ask, pair, ready, receive, send, strings};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::json;

/// The wait status of a command that ended with a code.
fn exited(code: i32) -> i32 {
    code << 8
}

fn gone(arena: &Arena) -> bool {
    arena.dirs().iter().all(|dir| !Path::new(dir).exists())
}

#[test]
fn without_an_owner_it_refuses_to_start() {
    for arguments in [&[][..], &["moon"], &["-1"], &["0"], &["1"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warden"));
        let done = command.args(arguments).stdin(Stdio::null()).output().unwrap();
        assert_eq!(done.status.code(), Some(1), "{arguments:?}");
        let message = String::from_utf8_lossy(&done.stderr);
        assert!(message.contains("only leakcheck starts"), "{message}");
    }
}

#[test]
fn each_wrong_request_is_refused_and_the_next_is_answered() {
    let owner = Owner::new();
    for (request, part) in [
        ("moon", "expected"),
        ("{}", "missing field `op`"),
        ("[]", "op"),
        (r#"{"op":"moon"}"#, "unknown variant `moon`"),
        (r#"{"op":"down"}"#, "missing field `id`"),
        (r#"{"op":"down","id":-1}"#, "invalid value"),
        (r#"{"op":"keep","id":"1"}"#, "invalid type"),
        (r#"{"op":"keep","id":7}"#, "no such arena"),
        (r#"{"op":"up","options":{"moon":1}}"#, "unknown field `moon`"),
        (r#"{"op":"up","options":{"size":"big"}}"#, "invalid type"),
        (r#"{"op":"up","options":{"binds":[["/a"]]}}"#, "invalid length"),
        (r#"{"op":"up"}"#, "no socket for commands came with the request"),
        ("\u{0}", "expected value"),
    ] {
        let (answer, fds) = ask(&owner.socket, request.as_bytes(), &[]);
        let error = answer["error"].as_str().unwrap_or_else(|| panic!("{request}: {answer}"));
        assert!(error.contains(part), "{request}: {error}");
        assert!(fds.is_empty());
    }
    let (answer, _) = ask(&owner.socket, b"\xff", &[]);
    assert!(answer["error"].is_string(), "{answer}");
    // Taking down an arena that does not exist succeeds.
    assert_eq!(owner.ask(&json!({"op": "down", "id": 7})), json!({"done": true}));
    assert_eq!(owner.children(), "");
}

#[test]
fn an_arena_runs_commands_and_is_taken_down() {
    if !Owner::can_have_arenas() {
        return;
    }
    let owner = Owner::new();
    let arena = owner.up(&json!({})).unwrap();
    assert!(arena.up["init"].as_i64().unwrap() > 1);
    assert_eq!(arena.up["layers"], json!(["/"]));
    // PID 1, its /proc, the root of its layer, and each fresh file system, those with mounts in them without these too.
    let paths = |what: &str| arena.up[what].as_array().unwrap().len();
    assert_eq!(arena.fds.len(), 3 + paths("roots") + paths("bare"));
    assert!(paths("bare") > 0);
    assert!(arena.dirs().iter().all(|dir| Path::new(dir).is_dir()));
    assert_eq!(arena.run(&["true"]), exited(0));
    assert_eq!(arena.run(&["sh", "-c", "exit 7"]), exited(7));
    assert_eq!(arena.run(&["sh", "-c", "kill -KILL $$"]), libc::SIGKILL);
    assert!(!arena.ends(Duration::ZERO));
    assert_eq!(owner.ask(&json!({"op": "down", "id": arena.up["id"]})), json!({"done": true}));
    assert!(arena.ends(Duration::ZERO) && gone(&arena));
}

#[test]
fn the_end_of_an_arena_is_told_to_the_socket_that_came_with_the_request_and_others_are_answered_meanwhile() {
    if !Owner::can_have_arenas() {
        return;
    }
    let owner = Owner::new();
    let (first, second) = (owner.up(&json!({})).unwrap(), owner.up(&json!({})).unwrap());
    let down = |arena: &Arena| json!({"op": "down", "id": arena.up["id"]});
    let (told, theirs) = pair();
    send(&owner.socket, down(&first).to_string().as_bytes(), &[theirs.as_fd()]);
    drop(theirs);
    assert_eq!(owner.ask(&down(&second)), json!({"done": true}));
    assert!(ready(told.as_fd(), PATIENCE));
    assert_eq!(receive(&told).unwrap().0, json!({"done": true}));
    assert!(receive(&told).is_none());
    assert!(gone(&first) && gone(&second));
}

#[test]
fn each_wrong_command_is_refused_and_the_next_is_started() {
    if !Owner::can_have_arenas() {
        return;
    }
    let owner = Owner::new();
    let arena = owner.up(&json!({})).unwrap();
    let null = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap();
    let run = |request: &str, all: &[&str]| {
        let file = strings(all);
        let fds = [null.as_fd(), null.as_fd(), null.as_fd(), null.as_fd(), file.as_fd()];
        ask(&arena.commands, request.as_bytes(), &fds).0
    };
    for (request, all, part) in [
        ("moon", &["/", "true"][..], "expected"),
        (r#"{"argc":-1}"#, &["/", "true"], "invalid value"),
        (r#"{"argc":1}"#, &[], "a start needs a working directory"),
        (r#"{"argc":0}"#, &["/", "true"], "no command"),
        (r#"{"argc":1}"#, &["/", "/nonexistent"], "start /nonexistent: no such file"),
        (r#"{"argc":1}"#, &["/nonexistent", "true"], "working directory /nonexistent: no such file"),
    ] {
        let answer = run(request, all);
        let error = answer["error"].as_str().unwrap_or_else(|| panic!("{request} {all:?}: {answer}"));
        assert!(error.contains(part), "{request} {all:?}: {error}");
    }
    let (answer, _) = ask(&arena.commands, br#"{"argc":1}"#, &[null.as_fd()]);
    assert_eq!(answer, json!({"error": "a start needs five descriptors"}));
    assert_eq!(arena.run(&["true"]), exited(0));
}

#[test]
fn a_step_of_the_bring_up_that_fails_is_named_and_leaves_nothing() {
    if !Owner::can_have_arenas() {
        return;
    }
    let owner = Owner::new();
    let arena = owner.up(&json!({})).unwrap();
    let parents: Vec<_> = arena.dirs().iter().map(|dir| Path::new(dir).parent().unwrap().to_owned()).collect();
    let steps = arena.up["steps"].as_array().unwrap().clone();
    assert!(steps.len() > 10, "{steps:?}");
    owner.ask(&json!({"op": "down", "id": arena.up["id"]}));
    // One of an arena's directories is locked while an arena uses it, except right after its creation and right before its
    // removal. Other wardens may run at the same time, so only what stays counts.
    let is_locked = |dir: &Path| std::fs::File::open(dir).is_ok_and(|dir| dir.try_lock().is_err());
    let left = || -> BTreeSet<_> {
        let entries = parents.iter().flat_map(|dir| std::fs::read_dir(dir).unwrap().flatten());
        let names =
            entries.map(|e| e.file_name()).filter(|name| name.to_string_lossy().starts_with("leakcheck-arena-"));
        names.filter(|name| !parents.iter().any(|dir| is_locked(&dir.join(name)))).collect()
    };
    let before = left();
    let nothing_stays = || {
        let end = Instant::now() + PATIENCE;
        while !left().is_subset(&before) {
            if Instant::now() >= end {
                return false;
            }
            std::thread::yield_now();
        }
        true
    };
    for step in steps {
        let why = owner.up(&json!({"fail": step})).err().unwrap();
        assert_eq!(why, format!("failed as asked; at step {step}"));
        assert_eq!(owner.children(), "", "{step}");
        assert!(nothing_stays(), "{step}: {:?}", left());
    }
    assert_eq!(owner.up(&json!({})).unwrap().run(&["true"]), exited(0));
}

#[test]
fn an_option_that_the_host_cannot_fulfil_is_named_with_its_step() {
    if !Owner::can_have_arenas() {
        return;
    }
    let owner = Owner::new();
    for (options, part) in [
        (json!({"binds": [["/nonexistent", "/mnt", true]]}), "bind /nonexistent"),
        (json!({"devices": ["nonexistent"]}), "device /dev/nonexistent"),
        (json!({"limits": [["no.such", "1"]]}), "cgroup limit no.such: no hierarchy here has it"),
        (json!({"hostname": "x".repeat(65)}), r#"at step "host name""#),
    ] {
        let why = owner.up(&options).err().unwrap();
        assert!(why.contains(part) && why.contains("; at step \""), "{options}: {why}");
    }
}

#[test]
fn an_arena_ends_with_its_owner_s_socket_unless_it_is_kept() {
    if !Owner::can_have_arenas() {
        return;
    }
    let mut owner = Owner::new();
    let (first, kept) = (owner.up(&json!({})).unwrap(), owner.up(&json!({})).unwrap());
    assert_eq!(owner.ask(&json!({"op": "keep", "id": kept.up["id"]})), json!({"done": true}));
    owner.socket = pair().0;
    assert!(first.ends(PATIENCE));
    assert!(!kept.ends(Duration::ZERO));
    // SIGTERM takes down all remaining arenas.
    let warden = pidfd_open(Pid::from_child(&owner.warden), PidfdFlags::empty()).unwrap();
    pidfd_send_signal(&warden, Signal::TERM).unwrap();
    assert!(owner.warden.wait().unwrap().success());
    assert!(kept.ends(Duration::ZERO) && gone(&kept) && gone(&first));
}

#[test]
fn the_warden_ends_with_its_owner_s_process_even_if_the_socket_stays_open() {
    if !Owner::can_have_arenas() {
        return;
    }
    // A shell is the owner; this test keeps the socket's other end open.
    let script = r#"exec 3<&0; "$1" $$ <&3 3<&- & exec 3<&- </dev/null; wait"#;
    let mut owner = Owner::of(Command::new("sh").args(["-c", script, "sh", env!("CARGO_BIN_EXE_warden")]));
    let arena = owner.up(&json!({})).unwrap();
    owner.warden.kill().unwrap();
    assert!(arena.ends(PATIENCE));
    assert!(ready(owner.socket.as_fd(), PATIENCE));
    assert!(receive(&owner.socket).is_none());
    assert!(gone(&arena));
}
