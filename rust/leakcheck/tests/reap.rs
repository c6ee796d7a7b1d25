//! Reaping removes exactly what a report attributes to its run, and what it cannot prove to be that it leaves alone.

#[path = "reap/common.rs"]
mod common;
#[path = "reap/mounts.rs"]
mod mounts;

use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;
use std::process::Command;

use common::*;
use leakcheck::judge::attribute::Attribution;
use leakcheck::reap::{Status, Verb, load, reap};
use leakcheck::resource::Resource;
use leakcheck::snapshot::Level;
use leakcheck::{Error, Kind, Report};

#[test]
fn a_dry_run_says_what_would_go_and_changes_nothing() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let mut run = Run::begin("process,file", &[place.path()], &[]);
    let mut child = sleeper();
    fs::create_dir(place.path().join("box")).unwrap();
    fs::write(place.path().join("box/file"), "x").unwrap();
    let report = run.end_attributed();
    let actions = reap(&report, false).unwrap();
    assert_eq!(report.leaks.len(), 3, "{:?}", report.leaks);
    assert!(actions.iter().all(|a| a.status == Status::Would), "{actions:?}");
    assert!(child.is_alive() && place.path().join("box/file").exists());
}

#[test]
fn a_process_is_killed_and_what_it_wrote_removed_children_first() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let mut run = Run::begin("process,file", &[place.path()], &[]);
    let mut child = sleeper();
    fs::create_dir_all(place.path().join("a/b")).unwrap();
    fs::write(place.path().join("a/b/file"), "x").unwrap();
    let report = run.end_attributed();
    let mut other = sleeper();
    let actions = reap(&report, true).unwrap();
    assert!(actions.iter().all(|a| a.status == Status::Done), "{actions:?}");
    let verbs: Vec<_> = actions.iter().map(|a| a.action).collect();
    assert_eq!(verbs, [Verb::Kill, Verb::Unlink, Verb::Unlink, Verb::Unlink]);
    assert_eq!(child.signal(), Some(9));
    assert!(other.is_alive(), "a process that is not in the report lives on");
    assert!(!place.path().join("a").exists());
    let again = reap(&report, true).unwrap();
    assert!(again.iter().all(|a| a.status == Status::Gone), "{again:?}");
}

#[test]
fn a_process_with_another_start_time_is_left_alone() {
    let _alone = alone();
    let mut run = Run::begin("process", &[], &[]);
    let mut child = sleeper();
    let report = run.end_attributed();
    let aged = altered(&report, |r| match r {
        Resource::Process(p) => p.start -= 1,
        other => panic!("{other:?}"),
    });
    let actions = reap(&aged, true).unwrap();
    assert_eq!(
        (actions[0].status, actions[0].why.as_str()),
        (Status::Gone, "it was replaced: another one is there now")
    );
    assert!(child.is_alive());
}

#[test]
fn neither_this_process_nor_its_parents_nor_the_first_one_are_ever_killed() {
    let _alone = alone();
    let observation = leakcheck::observe::snapshot(&options("process", &[], &[])).unwrap();
    let own = std::process::id();
    let mut line = vec![own];
    while let Some(parent) = observation.process(*line.last().unwrap()).map(|p| p.ppid).filter(|p| *p > 0) {
        line.push(parent);
    }
    let records = line.iter().filter_map(|pid| observation.process(*pid)).map(|p| Resource::Process(p.clone()));
    let report = canned(&observation.boot_id, records, Attribution::Descent);
    let actions = reap(&report, true).unwrap();
    assert!(!actions.is_empty());
    assert!(actions.iter().all(|a| a.status == Status::Skipped), "{actions:?}");
}

#[test]
fn a_zombie_goes_with_the_parent_that_never_waits_for_it() {
    let _alone = alone();
    let mut run = Run::begin("process", &[], &[]);
    let mut parent = planted(Command::new("sh").args(["-c", "sleep 0 & exec sleep 600"]));
    parent.wait_for_zombie_child();
    let report = run.end_attributed();
    let would = reap(&report, false).unwrap();
    let zombie = |actions: &[leakcheck::reap::Action]| {
        actions.iter().find(|a| a.label.starts_with("zombie")).expect("a zombie in the report").clone()
    };
    assert_eq!((zombie(&would).action, zombie(&would).status), (Verb::None, Status::Would), "{would:?}");
    let done = reap(&report, true).unwrap();
    assert_eq!(parent.signal(), Some(9));
    // Whether it is waited for is up to whoever adopts it.
    assert!(matches!(zombie(&done).status, Status::Gone | Status::Skipped), "{done:?}");
    assert!(!done.iter().any(|a| a.status == Status::Failed), "{done:?}");
}

#[test]
fn names_made_to_deceive_are_removed_and_their_neighbours_stay() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let names: [&[u8]; 5] = [b"a\nb", b"\x1b[31mred", b"\xff\xfe", b"<b>&", b"back\\x41slash"];
    fs::write(place.path().join("backAslash"), "").unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("kept"), "").unwrap();
    let mut run = Run::begin("file", &[place.path()], &[]);
    for name in names {
        fs::write(place.path().join(bytes(name)), "x").unwrap();
    }
    symlink(outside.path(), place.path().join("link")).unwrap();
    assert!(Command::new("mkfifo").arg(place.path().join("fifo")).status().unwrap().success());
    let report = run.end_attributed();
    assert_eq!(report.leaks.len(), names.len() + 2, "{:?}", report.leaks);
    assert!(fs::metadata(place.path().join("fifo")).unwrap().file_type().is_fifo());
    let actions = reap(&report, true).unwrap();
    assert!(actions.iter().all(|a| a.status == Status::Done), "{actions:?}");
    assert_eq!(entries(place.path()), ["backAslash"]);
    assert!(outside.path().join("kept").exists());
}

#[test]
fn a_path_longer_than_a_path_may_be_is_removed() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let mut run = Run::begin("file", &[place.path()], &[]);
    // 30 levels of 200 bytes, made from within.
    let script = "n=$(printf %0200d 0); for i in $(seq 30); do mkdir $n && cd -P $n || exit 1; done; : > end";
    let made = Command::new("bash").args(["-c", script]).current_dir(place.path()).status().unwrap();
    assert!(made.success());
    let report = run.end_attributed();
    assert_eq!(report.leaks.len(), 31);
    let actions = reap(&report, true).unwrap();
    assert!(actions.iter().all(|a| a.status == Status::Done), "{actions:?}");
    assert!(entries(place.path()).is_empty());
}

#[test]
fn a_file_that_is_another_one_by_now_stays() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let (file, dir) = (place.path().join("file"), place.path().join("dir"));
    let mut run = Run::begin("file", &[place.path()], &[]);
    fs::write(&file, "old").unwrap();
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("inner"), "old").unwrap();
    let report = run.end_attributed();
    fs::remove_file(&file).unwrap();
    fs::write(&file, "new").unwrap();
    // A link in the place of a directory must not lead anywhere.
    let elsewhere = tempfile::tempdir().unwrap();
    fs::rename(dir.join("inner"), elsewhere.path().join("inner")).unwrap();
    fs::remove_dir(&dir).unwrap();
    symlink(elsewhere.path(), &dir).unwrap();
    let actions = reap(&report, true).unwrap();
    assert!(actions.iter().all(|a| a.status == Status::Gone), "{actions:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "new");
    assert!(elsewhere.path().join("inner").exists() && dir.is_symlink());
}

#[test]
fn a_file_that_was_there_before_the_run_is_never_removed_but_a_new_name_of_it_is() {
    let _alone = alone();
    let (place, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |name: &str| place.path().join(name);
    for old in ["moved", "dir/inner", "twin", "lock"] {
        fs::create_dir_all(elsewhere.path().join(old).parent().unwrap()).unwrap();
        fs::write(elsewhere.path().join(old), "4194304\n").unwrap();
    }
    fs::write(at("mmm"), "old").unwrap();
    fs::write(at("replaced"), "old").unwrap();
    // The clock that births are compared with ticks.
    let born = fs::metadata(elsewhere.path().join("lock")).unwrap().created().unwrap();
    let born = born.duration_since(std::time::UNIX_EPOCH).unwrap();
    until("the file clock ticks", || {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        std::time::Duration::new(now.tv_sec as u64, now.tv_nsec as u32) > born
    });
    let mut run = Run::begin("file,lockfile", &[place.path()], &[at("lock")]);
    fs::hard_link(at("mmm"), at("aaa")).unwrap();
    for moved in ["moved", "dir", "lock"] {
        fs::rename(elsewhere.path().join(moved), at(moved)).unwrap();
    }
    fs::hard_link(elsewhere.path().join("twin"), at("twin")).unwrap();
    fs::write(at("fresh"), "new").unwrap();
    fs::write(at("other"), "new").unwrap();
    fs::rename(at("other"), at("replaced")).unwrap();
    let report = run.end_attributed();
    assert!(!report.leaks.iter().any(|l| l.label.contains("mmm")), "{:?}", report.leaks);
    let mut unsaid = report.clone();
    unsaid.baseline_ns = 0;
    let refused = reap(&unsaid, true).unwrap();
    assert!(refused.iter().all(|a| a.status != Status::Done), "{refused:?}");
    let actions = reap(&report, true).unwrap();
    let done: Vec<_> = actions.iter().filter(|a| a.status == Status::Done).map(|a| a.label.as_str()).collect();
    assert!(done.iter().all(|l| ["aaa", "twin", "fresh"].iter().any(|n| l.contains(n))), "{actions:?}");
    assert_eq!(done.len(), 3, "{actions:?}");
    assert_eq!(entries(place.path()), ["dir", "lock", "mmm", "moved", "replaced"]);
    assert!(at("dir/inner").exists() && elsewhere.path().join("twin").exists());
    assert!(actions.iter().filter(|a| a.status != Status::Done).all(|a| !a.why.is_empty()), "{actions:?}");
}

#[test]
fn what_nothing_attributes_to_the_run_stays_and_so_does_the_directory_that_holds_it() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let mut run = Run::begin("file", &[place.path()], &[]);
    fs::create_dir(place.path().join("dir")).unwrap();
    fs::write(place.path().join("dir/foreign"), "").unwrap();
    fs::write(place.path().join("dir/ours"), "").unwrap();
    let mut report = run.end_attributed();
    for leak in report.leaks.iter_mut().filter(|l| l.label.contains("foreign")) {
        leak.attribution = Attribution::None;
    }
    let foreign = report.leaks.iter().position(|l| l.label.contains("foreign")).unwrap();
    let foreign = report.leaks.remove(foreign);
    report.unattributed.push(foreign);
    for apply in [false, true] {
        let actions = reap(&report, apply).unwrap();
        let of = |name: &str| actions.iter().find(|a| a.label.ends_with(name)).unwrap();
        assert_eq!(of("ours").status, if apply { Status::Done } else { Status::Would });
        assert_eq!((of("dir").status, of("foreign").status), (Status::Failed, Status::Skipped), "{actions:?}");
        assert!(of("dir").why.contains("foreign"), "{}", of("dir").why);
        assert!(of("foreign").why.contains("attributes"), "{}", of("foreign").why);
    }
    assert_eq!(entries(&place.path().join("dir")), ["foreign"]);
}

#[test]
fn a_report_from_another_boot_is_refused_and_nothing_is_touched() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let mut run = Run::begin("file", &[place.path()], &[]);
    fs::write(place.path().join("file"), "").unwrap();
    let mut report = run.end_attributed();
    report.boot_id = "00000000-0000-0000-0000-000000000000".to_owned();
    let text = serde_json::to_string(&report).unwrap();
    let refused = load(&text, Path::new("old.json")).unwrap_err();
    assert!(matches!(refused, Error::Saved { .. }), "{refused:?}");
    let message = refused.to_string();
    assert!(message.starts_with("old.json: is from another boot") && message.contains("leakcheck guard"), "{message}");
    assert!(reap(&report, true).unwrap_err().is_usage());
    assert!(place.path().join("file").exists());
}

#[test]
fn what_is_no_report_of_this_version_is_refused_with_what_to_do() {
    let path = Path::new("r.json");
    let refuse = |text: &str| load(text, path).unwrap_err().to_string();
    assert!(refuse(r#"{"schema": "leakcheck.report/2"}"#).contains("leakcheck.report/1"));
    assert!(refuse(r#"{"schema": "leakcheck.snapshot/1"}"#).contains("leakcheck guard"));
    assert!(refuse("{}").contains("no schema"));
    assert!(refuse(r#"{"schema": "leakcheck.report/1"}"#).contains("damaged"));
    let whole = serde_json::to_string(&Report::empty(boot_id(), leakcheck::snapshot::CoverageMap::default())).unwrap();
    assert!(refuse(&whole[..whole.len() / 2]).contains("truncated"));
    assert!(load(&whole, path).unwrap().leaks.is_empty());
}

#[test]
fn a_record_that_is_not_the_one_of_its_key_is_left_alone() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let mut run = Run::begin("file", &[place.path()], &[]);
    fs::write(place.path().join("file"), "").unwrap();
    let mut report = run.end_attributed();
    report.leaks[0].key.push('0');
    let actions = reap(&report, true).unwrap();
    assert_eq!((actions[0].kind, actions[0].status), (Kind::File, Status::Skipped));
    report.leaks[0].evidence.remove("resource");
    assert_eq!(reap(&report, true).unwrap()[0].status, Status::Skipped);
    assert!(place.path().join("file").exists());
}

#[test]
fn a_stale_lock_file_is_removed_and_one_that_is_held_or_free_again_stays() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let paths = ["stale", "held", "freed"].map(|name| place.path().join(name));
    let mut run = Run::begin("lockfile", &[], &paths);
    let mut dead = sleeper();
    dead.kill();
    for path in &paths {
        fs::write(path, format!("{}\n", dead.pid())).unwrap();
    }
    let report = run.end_attributed();
    let stale = |l: &leakcheck::judge::report::Leak| l.evidence["resource"]["state"] == "stale";
    assert!(report.leaks.len() == 3 && report.leaks.iter().all(stale), "{:?}", report.leaks);
    let held = fs::File::open(&paths[1]).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    fs::write(&paths[2], "").unwrap();
    let actions = reap(&report, true).unwrap();
    let of = |name: &str| actions.iter().find(|a| a.label.ends_with(name)).unwrap();
    assert_eq!(of("stale").status, Status::Done);
    assert_eq!((of("held").status, of("freed").status), (Status::Skipped, Status::Gone), "{actions:?}");
    assert_eq!(entries(place.path()), ["freed", "held"]);
}

#[test]
fn shared_memory_semaphores_and_queues_are_removed_by_id() {
    let _alone = alone();
    let mut run = Run::begin("ipc", &[], &[]);
    let objects = SystemV::plant();
    let shm = ShmFile::plant();
    let report = run.end_claiming(|r| objects.are(r) || matches!(r, Resource::Ipc(i) if i.name.as_path() == shm.0));
    assert_eq!(report.leaks.len(), 4, "{:?}", report.leaks);
    let would = reap(&report, false).unwrap();
    assert!(would.iter().all(|a| a.status == Status::Would), "{would:?}");
    assert!(objects.exist() == [true; 3] && shm.0.exists());
    // Another owner than the record's: another object.
    let foreign = altered(&report, |r| match r {
        Resource::Ipc(i) => i.uid += 1,
        other => panic!("{other:?}"),
    });
    let left = reap(&foreign, true).unwrap();
    assert!(left.iter().all(|a| a.status == Status::Gone), "{left:?}");
    assert!(objects.exist() == [true; 3] && shm.0.exists());
    let done = reap(&report, true).unwrap();
    assert!(done.iter().all(|a| a.status == Status::Done), "{done:?}");
    assert!(objects.exist() == [false; 3] && !shm.0.exists());
    let again = reap(&report, true).unwrap();
    assert!(again.iter().all(|a| a.status == Status::Gone), "{again:?}");
}

#[test]
fn a_message_queue_is_removed_by_its_name() {
    let _alone = alone();
    let mut run = Run::begin("ipc", &[], &[]);
    let Some(queue) = Queue::plant() else { return eprintln!("skipped: no message queue can be made") };
    let report = run.end_claiming(|r| matches!(r, Resource::Ipc(i) if i.name.as_path() == queue.path()));
    if report.coverage.0[&Kind::Ipc].level != Level::Full {
        return eprintln!("skipped: this user may not list message queues");
    }
    let [leak] = report.leaks.as_slice() else { panic!("{:?}", report.leaks) };
    assert_eq!(leak.evidence["resource"]["class"], "mqueue");
    assert_eq!(reap(&report, false).unwrap()[0].status, Status::Would);
    assert!(queue.exists());
    assert_eq!(reap(&report, true).unwrap()[0].status, Status::Done);
    assert!(!queue.exists());
}

#[test]
fn a_key_is_unlinked_from_our_own_keyring_if_it_is_still_the_same() {
    let _alone = alone();
    let Some(key) = PlantedKey::plant() else { return eprintln!("skipped: no key can be made") };
    let observation = leakcheck::observe::snapshot(&options("key", &[], &[])).unwrap();
    let of_test = observation.keys.iter().filter(|k| k.serial == key.0).cloned().map(Resource::Key);
    let report = canned(&observation.boot_id, of_test, Attribution::Creator);
    assert_eq!(report.leaks.len(), 1);
    let renamed = altered(&report, |r| match r {
        Resource::Key(k) => k.description = b"other".into(),
        other => panic!("{other:?}"),
    });
    // Who does not see every key cannot tell that one is gone.
    let blind = observation.coverage.0[&Kind::Key].level != Level::Full;
    assert_eq!(reap(&renamed, true).unwrap()[0].status, if blind { Status::Skipped } else { Status::Gone });
    assert_eq!(reap(&report, false).unwrap()[0].status, Status::Would);
    assert!(key.is_linked());
    assert_eq!(reap(&report, true).unwrap()[0].status, Status::Done);
    assert!(!key.is_linked());
}

#[test]
fn a_descriptor_and_a_lock_go_with_the_process_that_holds_them() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("file");
    fs::write(&file, "").unwrap();
    let mut run = Run::begin("process,fd,lock", &[], &[]);
    // Taken here and left to the child: the lock belongs to the open file description.
    let taken = fs::File::open(&file).unwrap();
    rustix::fs::flock(&taken, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut holder = Planted::with_input(Command::new("sleep").arg("600"), taken);
    let report = run.end_attributed();
    let would = reap(&report, false).unwrap();
    let lock = |actions: &[leakcheck::reap::Action]| actions.iter().find(|a| a.kind == Kind::Lock).unwrap().clone();
    assert_eq!((lock(&would).action, lock(&would).status), (Verb::None, Status::Skipped), "{would:?}");
    let done = reap(&report, true).unwrap();
    assert_eq!(lock(&done).status, Status::Gone, "{done:?}");
    assert_eq!(holder.signal(), Some(9));
}

#[test]
fn a_cgroup_and_those_below_it_are_removed_once_its_process_is_killed() {
    let _alone = alone();
    let Some(top) = Cgroup::plant_root() else { return eprintln!("skipped: no cgroup can be made here") };
    let mut run = Run::begin("process,cgroup", &[], &[]);
    let (outer, inner) = (top.child("outer"), top.child("outer/inner"));
    let mut child = sleeper();
    inner.admit(child.pid());
    let report = run.end_attributed();
    let would = reap(&report, false).unwrap();
    assert!(would.len() == 3 && would.iter().all(|a| a.status == Status::Would), "{would:?}");
    assert!(outer.0.exists() && child.is_alive());
    let done = reap(&report, true).unwrap();
    assert!(done.iter().all(|a| a.status == Status::Done), "{done:?}");
    assert!(!outer.0.exists() && top.0.exists());
    assert_eq!(child.signal(), Some(9));
    assert!(reap(&report, true).unwrap().iter().all(|a| a.status == Status::Gone));
}

#[test]
fn a_cgroup_with_a_process_or_a_cgroup_of_somebody_else_stays() {
    let _alone = alone();
    let Some(top) = Cgroup::plant_root() else { return eprintln!("skipped: no cgroup can be made here") };
    let mut stranger = sleeper();
    let mut run = Run::begin("process,cgroup", &[], &[]);
    let (busy, parent, again) = (top.child("busy"), top.child("parent"), top.child("again"));
    busy.admit(stranger.pid());
    let report = run.end_attributed();
    let _foreign = top.child("parent/foreign");
    // The same name, another cgroup.
    fs::remove_dir(&again.0).unwrap();
    fs::create_dir(&again.0).unwrap();
    for apply in [false, true] {
        let actions = reap(&report, apply).unwrap();
        let of = |name: &str| actions.iter().find(|a| a.label.ends_with(name)).unwrap();
        assert_eq!(of("busy").status, Status::Skipped);
        assert_eq!(of("busy").why, format!("still holds process {}", stranger.pid()));
        assert_eq!((of("parent").status, of("again").status), (Status::Skipped, Status::Gone), "{actions:?}");
    }
    assert!(busy.0.exists() && parent.0.exists() && again.0.exists() && stranger.is_alive());
}

#[test]
fn mounts_named_namespaces_loop_devices_and_interfaces_are_removed() {
    let _alone = alone();
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: only root may unshare a mount namespace here");
    }
    // In namespaces of its own, so that no mount of the machine is in reach.
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--net", "--"]);
    command.arg(std::env::current_exe().unwrap());
    let output = command.args(["mounts::", "--ignored", "--test-threads=1"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
}
