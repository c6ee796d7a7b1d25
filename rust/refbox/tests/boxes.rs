//! Locks, state files, quarantine, and invalid input.

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::Command;

use common::{Place, finish, fnv, root};
use serde_json::{Value, json};

#[test]
fn a_box_in_use_is_refused_or_waited_for() {
    if !root() {
        return;
    }
    let place = Place::new("in-use");
    let held = place.held(3, &[]);
    let pid = held.child.id();
    let refused = place.command(&["run", "--box", "3", "--result", "/dev/null", "--", "/bin/true"]).spawn().unwrap();
    let refused = finish(refused);
    assert_eq!(refused.status.code(), Some(3));
    assert_eq!(String::from_utf8_lossy(&refused.stderr), format!("refbox: box 3 is in use by pid {pid}\n"));
    assert_eq!(place.refbox(&["recover", "--box", "3"]).status.code(), Some(3));
    assert_eq!(place.refbox(&["clean", "--box", "3"]).status.code(), Some(3));
    // All others are recovered.
    assert_eq!(place.refbox(&["recover"]).status.code(), Some(0));
    assert_eq!(place.health().1["boxes"][0]["status"], "busy");
    let arguments = ["run", "--box", "3", "--wait", "--result", "/dev/null", "--", "/bin/true"];
    let mut waiting = place.command(&arguments).spawn().unwrap();
    let other = place.run(4, &["--", "/bin/true"]);
    assert_eq!((other.status(), waiting.try_wait().unwrap()), ("OK", None));
    assert_eq!(held.let_go(&place, 3).status(), "OK");
    assert_eq!(finish(waiting).status.code(), Some(0));
    place.assert_nothing_left("in use");
}

fn envelope(intent: &Value) -> String {
    let (intent, phase) = (intent.to_string(), "\"execution\"");
    let checksum = fnv(&intent);
    format!("{{\"version\":1,\"checksum\":\"{checksum:016x}\",\"state\":{{\"intent\":{intent},\"phase\":{phase}}}}}\n")
}

#[test]
fn a_state_that_cannot_be_trusted_is_set_aside_and_the_box_goes_on() {
    if !root() {
        return;
    }
    let place = Place::new("corrupt");
    assert_eq!(place.run(5, &["--", "/bin/true"]).status(), "OK");
    let decoy = place.dir.join(format!("{}5", place.cgroup_prefix()));
    fs::create_dir(&decoy).unwrap();
    let good = json!({"box": 5, "supervisor": {"pid": 4_000_000, "start_time": 1, "boot_id": "x"},
        "cgroups": [], "quarantined": null});
    let with = |key: &str, value: Value| {
        let mut state = good.clone();
        state[key] = value;
        envelope(&state)
    };
    let whole = envelope(&good);
    let variants = [
        ("empty", String::new()),
        ("no JSON", "garbage\u{0}".to_owned()),
        ("truncated", whole[..whole.len() / 2].to_owned()),
        ("wrong checksum", whole.replace("4000000", "4000001")),
        ("no last byte", whole[..whole.len() - 1].to_owned()),
        ("another width", whole.replace("execution", "setup")),
        ("unknown phase", whole.replace("execution", "digestion")),
        ("another version", whole.replace("\"version\":1", "\"version\":9")),
        ("another box", with("box", json!(6))),
        ("pid 1", with("supervisor", json!({"pid": 1, "start_time": 1, "boot_id": "x"}))),
        ("pid -1", with("supervisor", json!({"pid": -1, "start_time": 1, "boot_id": "x"}))),
        ("the root cgroup", with("cgroups", json!(["/sys/fs/cgroup"]))),
        ("a file system", with("cgroups", json!(["/"]))),
        ("a way out", with("cgroups", json!([format!("/sys/../etc/{}5", place.cgroup_prefix())]))),
        ("somebody's directory", with("cgroups", json!([decoy]))),
    ];
    for (count, (name, content)) in variants.iter().enumerate() {
        fs::write(place.state_file(5), content).unwrap();
        fs::set_permissions(place.state_file(5), Permissions::from_mode(0o600)).unwrap();
        let wanted = if *name == "somebody's directory" { "stale" } else { "corrupt" };
        assert_eq!(place.health().1["boxes"][0]["status"], wanted, "{name}");
        if count % 2 == 0 {
            let ran = place.run(5, &["--", "/bin/true"]);
            assert_eq!((ran.code, ran.status()), (0, "OK"), "{name}: {}", ran.all());
        } else {
            assert_eq!(place.refbox(&["recover", "--box", "5"]).status.code(), Some(0), "{name}");
        }
        assert_eq!(fs::read_to_string(place.state().join("quarantine/box-5.json")).unwrap(), *content, "{name}");
        let audit = place.audit();
        assert_eq!(audit.len(), count + 1, "{name}");
        assert_eq!((&audit[count]["event"], &audit[count]["box"]), (&json!("state-set-aside"), &json!(5)), "{name}");
        place.assert_nothing_left(name);
        assert!(decoy.is_dir(), "{name}");
    }
    assert_eq!(place.refbox(&["clean", "--box", "5"]).status.code(), Some(0));
    assert_eq!(fs::read_dir(place.state().join("quarantine")).unwrap().count(), 0);
    assert!(place.state().join("box-5.lock").exists());
}

#[test]
fn what_is_no_state_file_of_ours_is_set_aside_and_never_waited_for() {
    if !root() {
        return;
    }
    let place = Place::new("no-state");
    assert_eq!(place.run(5, &["--", "/bin/true"]).status(), "OK");
    let whole = envelope(&json!({"box": 5, "supervisor": {"pid": 4_000_000, "start_time": 1, "boot_id": "x"},
        "cgroups": [], "quarantined": null}));
    let make = |what: &str| {
        let file = place.state_file(5);
        match what {
            "FIFO" => assert!(Command::new("mkfifo").arg(&file).status().unwrap().success()),
            "link" => symlink("/etc/passwd", &file).unwrap(),
            "directory" => fs::create_dir(&file).unwrap(),
            _ => {
                fs::write(&file, if what == "large" { " ".repeat(1 << 17) } else { whole.clone() }).unwrap();
                let mode = if what == "mode" { 0o644 } else { 0o600 };
                fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
                if what == "owner" {
                    chown(&file, Some(65_534), None).unwrap();
                }
            }
        }
    };
    for (count, what) in ["FIFO", "link", "directory", "large", "mode", "owner"].into_iter().enumerate() {
        make(what);
        assert_eq!(place.health().1["boxes"][0]["status"], "corrupt", "{what}");
        assert_eq!(place.refbox(&["recover", "--box", "5"]).status.code(), Some(0), "{what}");
        let audit = place.audit();
        assert_eq!(audit.len(), count + 1, "{what}");
        assert_eq!(audit[count]["event"], "state-set-aside", "{what}");
        assert_eq!(place.run(5, &["--", "/bin/true"]).status(), "OK", "{what}");
    }
}

#[test]
fn that_a_state_file_is_missing_is_in_the_audit_if_its_cgroups_are_there() {
    if !root() {
        return;
    }
    let place = Place::new("missing");
    let mut held = place.held(3, &[]);
    held.child.kill().unwrap();
    held.child.wait().unwrap();
    fs::remove_file(place.state_file(3)).unwrap();
    assert_eq!(place.refbox(&["recover", "--box", "3"]).status.code(), Some(0));
    let events: Vec<_> = place.audit().iter().map(|line| line["event"].clone()).collect();
    assert_eq!(events, ["state-missing"]);
    place.assert_nothing_left("missing");
}

#[test]
fn a_box_whose_clean_up_failed_is_out_of_service_until_it_is_recovered() {
    if !root() {
        return;
    }
    let place = Place::new("quarantine");
    let held = place.held(6, &[]);
    let foreign = place.cgroups().first().unwrap().join("foreign");
    fs::create_dir(&foreign).unwrap();
    let ran = held.let_go(&place, 6);
    assert_eq!((ran.code, ran.status()), (1, "IE"), "{}", ran.all());
    assert!(ran.result["reason"].as_str().unwrap().starts_with("clean-up failed: remove cgroup"), "{}", ran.all());
    assert!(foreign.is_dir(), "what is not ours was removed");
    let (code, health) = place.health();
    assert_eq!((code, health["status"].as_str()), (1, Some("quarantined")), "{health}");
    assert_eq!(place.audit().last().unwrap()["event"], "quarantined");
    let next = place.run(6, &["--", "/bin/true"]);
    assert_eq!((next.code, &next.result), (4, &Value::Null), "{}", next.all());
    assert!(next.stderr.contains("refbox recover --box 6"), "{}", next.all());
    assert_eq!(place.run(7, &["--", "/bin/true"]).status(), "OK");
    assert_eq!(place.refbox(&["recover", "--box", "6"]).status.code(), Some(0));
    assert_eq!(place.audit().last().unwrap()["event"], "returned-to-service");
    assert_eq!(place.health().0, 0);
    assert_eq!(place.run(6, &["--", "/bin/true"]).status(), "OK");
    place.assert_nothing_left("recovered");
}

#[test]
fn a_process_that_somebody_put_into_a_box_dies_with_it() {
    if !root() {
        return;
    }
    let place = Place::new("intruder");
    let held = place.held(6, &[]);
    let mut intruder = std::process::Command::new("/bin/sleep").arg("600").spawn().unwrap();
    for dir in place.cgroups() {
        fs::write(dir.join("cgroup.procs"), intruder.id().to_string()).unwrap();
    }
    assert_eq!(held.let_go(&place, 6).status(), "OK");
    assert!(!intruder.wait().unwrap().success());
    place.assert_nothing_left("intruder");
}

#[test]
fn recovery_with_nothing_to_do_succeeds() {
    if !root() {
        return;
    }
    let place = Place::new("nothing");
    for arguments in [&["recover"][..], &["recover", "--box", "9999"], &["clean", "--box", "0"], &["health"]] {
        assert_eq!(place.refbox(arguments).status.code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn health_that_cannot_be_printed_is_a_failure_on_one_line() {
    if !root() || !std::path::Path::new("/dev/full").exists() {
        return;
    }
    let place = Place::new("full-health");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let done = finish(place.command(&["health"]).stdout(full).spawn().unwrap());
    assert_eq!(done.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&done.stderr),
        "refbox: print the health: no space left on device: the disk is full\n"
    );
}

#[test]
fn invalid_input_is_reported_on_one_line_and_leaves_nothing() {
    if !root() {
        return;
    }
    let place = Place::new("usage");
    let file = place.write("file", "int main(){}");
    let (missing, directory) = (place.dir.join("missing"), place.dir.to_str().unwrap());
    let missing = missing.to_str().unwrap();
    let table: [(&[&str], &str); 20] = [
        (&["--box", "10000", "--", "/bin/true"], "a box number is 0 to 9999"),
        (&["--box", "-1", "--", "/bin/true"], "--box"),
        (&["--wall", "0", "--", "/bin/true"], "must be above 0 seconds"),
        (&["--wall", "-1", "--", "/bin/true"], "must be above 0 seconds"),
        (&["--cpu", "nan", "--", "/bin/true"], "must be above 0 seconds"),
        (&["--memory", "0", "--", "/bin/true"], "must be above 0 bytes"),
        (&["--memory", "9000G", "--", "/bin/true"], "above this host's memory"),
        (&["--processes", "0", "--", "/bin/true"], "must be above 0"),
        (&["--processes", "4294967295", "--", "/bin/true"], "above this host's pid_max"),
        (&["--output", "-1", "--", "/bin/true"], "must be above 0 bytes"),
        (&["--stdin", missing, "--", "/bin/true"], "no such file or directory"),
        (&["--stdout", directory, "--", "/bin/true"], "is a directory"),
        (&["--bind", missing, "--", "/bin/true"], "no such file or directory"),
        (&["--bind", "/", "--", "/bin/true"], "would show all of the host"),
        (&["--", missing], "no such file or directory"),
        (&["--", "true"], "is not an absolute path"),
        (&["--", &file], "no such file or directory; is it visible in the box?"),
        (&["--language", "cobol", "--source", &file], "unknown; one of c, cpp"),
        (&["--language", "c", "--source", missing], "no such file or directory"),
        (&[], "PROGRAM"),
    ];
    for (arguments, part) in table {
        let mut command = place.command(&["run", "--result", directory_of_result(&place).as_str()]);
        if !arguments.contains(&"--box") {
            command.args(["--box", "1"]);
        }
        let output = finish(command.args(arguments).spawn().unwrap());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(part) && text.trim_end().lines().count() == 1, "{arguments:?}: {text}");
        assert!(!place.dir.join("result.json").exists(), "{arguments:?}");
        place.assert_nothing_left(part);
    }
}

fn directory_of_result(place: &Place) -> String {
    place.dir.join("result.json").to_str().unwrap().to_owned()
}

#[test]
fn a_directory_that_is_not_writable_is_a_usage_error() {
    if !root() {
        return;
    }
    let place = Place::new("unwritable");
    for (state, result) in [("/proc/refbox", "/dev/null"), ("/dev/null/x", "/dev/null"), ("", "/nonexistent/x")] {
        let mut command = place.command(&["run", "--box", "1", "--result", result, "--", "/bin/true"]);
        if !state.is_empty() {
            command.env("REFBOX_STATE", state);
        }
        let output = finish(command.spawn().unwrap());
        assert_eq!(output.status.code(), Some(2), "{state} {result}: {output:?}");
    }
    let shared = place.state();
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let ran = place.run(1, &["--", "/bin/true"]);
    assert!(ran.code == 2 && ran.stderr.contains("others can write to it"), "{}", ran.all());
}
