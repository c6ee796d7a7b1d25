//! An arena seen from outside: what is planted inside is found, and nothing else. Needs root.

mod arena_support;

use std::collections::BTreeSet;

use arena_support::{Arena, binary};
use leakcheck::judge::attribute::Attribution;
use leakcheck::judge::diff::diff;
use leakcheck::resource::FileState::{self, Changed, Created, Deleted};
use leakcheck::resource::Resource;
use leakcheck::snapshot::Level;
use leakcheck::{Kind, Report, Verdict, observe};
use serde_json::json;

fn labels(report: &Report) -> BTreeSet<&str> {
    report.leaks.iter().map(|l| l.label.as_str()).collect()
}

#[test]
fn an_arena_that_nobody_touches_does_not_change() {
    let Some(arena) = Arena::up() else { return };
    let before = arena.snapshot(&[]);
    eprintln!("{:?}", before.coverage);
    assert!(before.processes.iter().any(|p| p.pid == 1 && p.comm.as_ref() == b"arena-init"), "{:?}", before.processes);
    arena.sh("true");
    let after = arena.snapshot(&[]);
    let changes = diff(&before, &after).unwrap();
    let ours = |r: &&Resource| !matches!(r.kind(), Kind::Loop | Kind::Key | Kind::Bpf);
    assert_eq!(changes.appeared.iter().filter(ours).collect::<Vec<_>>(), Vec::<&Resource>::new());
    assert_eq!(changes.vanished.iter().filter(ours).collect::<Vec<_>>(), Vec::<&Resource>::new());
}

#[test]
fn an_orphan_is_found_by_its_pid_inside() {
    let Some(arena) = Arena::up() else { return };
    let report = arena.guarded(&[Kind::Process], "sleep 1000 >/dev/null & exit 0");
    assert_eq!(report.verdict, Verdict::Leaked, "{report:?}");
    assert_eq!(report.leaks.len(), 1, "{:?}", labels(&report));
    assert!(report.leaks[0].label.ends_with("(sleep): sleep 1000"), "{:?}", labels(&report));
    assert_eq!(report.leaks[0].attribution, Attribution::Scope);
    assert!(report.settle.ms < 3000.0, "{:?}", report.settle);
}

fn files(report: &Report) -> Vec<(String, Option<FileState>)> {
    let records = report.leaks.iter().map(|l| serde_json::from_value(l.evidence["resource"].clone()).unwrap());
    let mut found: Vec<_> = records
        .map(|r| match r {
            Resource::File(f) => (f.path.to_string(), f.state),
            other => panic!("{other:?}"),
        })
        .collect();
    found.sort();
    found
}

fn expected(files: &[(&str, Option<FileState>)]) -> Vec<(String, Option<FileState>)> {
    files.iter().map(|(path, state)| ((*path).to_owned(), *state)).collect()
}

#[test]
fn files_are_told_apart_as_created_changed_and_deleted() {
    let Some(arena) = Arena::up() else { return };
    let script = "mkdir -p /etc/new.d && echo x >/etc/new.d/a && echo x >>/etc/passwd && rm /etc/group && chmod 600 /etc/hosts \
                  && ln -sf /nowhere /etc/hostname && echo x >/tmp/t";
    let report = arena.guarded(&[Kind::File], script);
    let wanted = [
        ("/etc/group", Some(Deleted)),
        ("/etc/hostname", Some(Changed)),
        ("/etc/hosts", Some(Changed)),
        ("/etc/new.d", Some(Created)),
        ("/etc/new.d/a", Some(Created)),
        ("/etc/passwd", Some(Changed)),
        ("/tmp/t", None),
    ];
    assert_eq!(files(&report), expected(&wanted));
    assert!(labels(&report).contains("deleted file /etc/group"), "{:?}", labels(&report));
    assert!(report.leaks.iter().all(|l| l.attribution == Attribution::Scope));
    assert_eq!(report.gauges["touched_files"], [0, 0]);
}

#[test]
fn a_file_that_was_touched_only_is_counted_and_no_residue() {
    let Some(arena) = Arena::up() else { return };
    let script = ": >>/etc/passwd; chmod --reference=/etc/group /etc/group; touch /etc/hosts; cp /etc/fstab /etc/x; cat /etc/x >/etc/fstab; \
                  rm /etc/x; echo x >/etc/y; rm /etc/y; touch -h /etc/localtime";
    let report = arena.guarded(&[Kind::File], script);
    assert_eq!(files(&report), []);
    assert_eq!(report.verdict, Verdict::Clean, "{report:?}");
    // chmod(1) to the same mode makes no system call that copies up.
    assert!((4..=5).contains(&report.gauges["touched_files"][1]), "{:?}", report.gauges);
}

#[test]
fn a_second_change_of_one_file_is_another() {
    let Some(arena) = Arena::up() else { return };
    arena.sh("echo a >>/etc/passwd; rm /etc/group; echo a >/etc/new");
    let report = arena.guarded(&[Kind::File], "touch /etc/passwd /etc/new");
    assert_eq!(files(&report), [], "the same content is the same change");
    let report = arena.guarded(&[Kind::File], "sed -i s/^a$/b/ /etc/passwd");
    assert_eq!(files(&report), expected(&[("/etc/passwd", Some(Changed))]));
    let report = arena.guarded(&[Kind::File], "echo b >/etc/group");
    assert_eq!(files(&report), expected(&[("/etc/group", Some(Changed))]));
}

#[test]
fn directories_that_were_renamed_replaced_or_deleted_are_told() {
    let Some(arena) = Arena::up() else { return };
    let lower = "/var/lib/leakcheck-arena-test";
    std::fs::create_dir_all(format!("{lower}/a/deep")).unwrap();
    std::fs::create_dir_all(format!("{lower}/b")).unwrap();
    std::fs::create_dir_all(format!("{lower}/c")).unwrap();
    std::fs::create_dir_all(format!("{lower}/d/e")).unwrap();
    std::fs::write(format!("{lower}/a/deep/f"), "f").unwrap();
    let script = "cd /var/lib/leakcheck-arena-test && mv a renamed && echo g >renamed/deep/g && echo f >renamed/deep/f \
                  && rmdir b && mkdir b && rmdir c && chmod 700 d/e";
    let report = arena.guarded(&[Kind::File], script);
    std::fs::remove_dir_all(lower).unwrap();
    let wanted = [
        ("/var/lib/leakcheck-arena-test/a", Some(Deleted)),
        ("/var/lib/leakcheck-arena-test/b", Some(Changed)),
        ("/var/lib/leakcheck-arena-test/c", Some(Deleted)),
        ("/var/lib/leakcheck-arena-test/d/e", Some(Changed)),
        ("/var/lib/leakcheck-arena-test/renamed", Some(Created)),
        ("/var/lib/leakcheck-arena-test/renamed/deep/f", Some(Changed)),
        ("/var/lib/leakcheck-arena-test/renamed/deep/g", Some(Created)),
    ];
    assert_eq!(files(&report), expected(&wanted));
}

#[test]
fn the_observer_changes_nothing_in_an_arena() {
    let Some(arena) = Arena::up() else { return };
    arena.sh("echo a >>/etc/passwd; mkdir /tmp/d; sleep 1 & exit 0");
    let before = arena.snapshot(&[Kind::Namespace, Kind::Mount, Kind::File, Kind::Ipc, Kind::Net]);
    for _ in 0..20 {
        arena.snapshot(&[]);
    }
    let after = arena.snapshot(&[Kind::Namespace, Kind::Mount, Kind::File, Kind::Ipc, Kind::Net]);
    assert!(diff(&before, &after).unwrap().is_empty());
}

#[test]
fn locks_of_the_host_are_not_the_arenas() {
    let Some(arena) = Arena::up() else { return };
    let file = tempfile::tempfile().unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let before = arena.snapshot(&[Kind::Lock]);
    let ino = std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
    assert!(before.locks.iter().all(|l| l.ino != ino), "{:?}", before.locks);
    // A lock whose taker is dead is listed nowhere, but for the descriptor that an orphan has of it.
    arena.sh("exec 9>/tmp/l; flock 9; sleep 1000 & exit 0");
    match diff(&before, &arena.snapshot(&[Kind::Lock])).unwrap().appeared.as_slice() {
        [Resource::Lock(lock)] => assert_eq!((lock.class.as_str(), lock.pid), ("flock", 0)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn cgroups_are_named_from_the_arenas_own() {
    let Some(arena) = Arena::up() else { return };
    let Some((_, dir)) = arena.observed.view.cgroups.first() else { return };
    std::fs::create_dir(dir.join("box")).unwrap();
    let observation = arena.snapshot(&[Kind::Cgroup]);
    let paths: Vec<String> = observation.cgroups.iter().map(|c| c.path.to_string()).collect();
    assert_eq!(paths, ["/box"]);
}

#[test]
fn what_no_namespace_isolates_is_tied_or_said_to_be_nobodys() {
    let program = binary("mkleak", "mkleak");
    let Some(arena) = Arena::showing(&program, json!({})) else { return };
    // Which keys it made its calls tell, where they can be recorded.
    let by_calls = [Attribution::Creator, Attribution::None];
    for (plant, kind, attributions) in
        [("key-user", Kind::Key, &by_calls[..]), ("bpf-map", Kind::Bpf, &[Attribution::Holder])]
    {
        let mut mkleak = arena.start(&[program.to_str().unwrap(), plant, "--hold"]);
        mkleak.line().unwrap();
        let mut guard = arena.guard(&[kind]);
        mkleak.go();
        let Some(facts) = mkleak.line() else { continue };
        let report = guard.end(None).unwrap();
        let by: Vec<Attribution> = report.leaks.iter().map(|l| l.attribution).collect();
        assert!(by.iter().any(|one| attributions.contains(one)), "{plant} {facts}: {report:?}");
        let told = !by.contains(&Attribution::None);
        assert_eq!(report.coverage.0[&kind].level == Level::Full, told, "{plant} {facts}: {report:?}");
        assert!(!report.coverage.0[&kind].reason.is_empty());
        mkleak.go();
        mkleak.line();
        mkleak.go();
        mkleak.wait();
    }
}

#[test]
fn a_report_of_an_arena_reaps_nothing_on_the_host() {
    let Some(arena) = Arena::up() else { return };
    let report = arena.guarded(&[Kind::File], "rm /etc/group");
    assert_eq!(report.scope, leakcheck::Scope::Arena);
    let refused = leakcheck::reap::reap(&report, true).unwrap_err();
    assert!(refused.is_usage(), "{refused}");
}

#[test]
fn an_arena_that_ended_is_no_clean_one() {
    let Some(arena) = Arena::up() else { return };
    let mut guard = arena.guard(&[]);
    let options = arena.options(&[]);
    drop(arena);
    assert!(guard.end(None).is_err());
    let error = observe::snapshot(&options).unwrap_err();
    assert!(error.to_string().contains("PID 1 of the arena"), "{error}");
}

#[test]
fn an_arena_excludes_other_scopes_and_roots() {
    let Some(arena) = Arena::up() else { return };
    let scoped = observe::Options { scope: leakcheck::Scope::Tree(1), ..arena.options(&[]) };
    assert!(observe::snapshot(&scoped).unwrap_err().is_usage());
    let rooted = observe::Options { roots: Some(vec!["/tmp".into()]), ..arena.options(&[]) };
    assert!(observe::snapshot(&rooted).unwrap_err().is_usage());
    let none = observe::Options { scope: leakcheck::Scope::Arena, ..observe::Options::default() };
    assert!(observe::snapshot(&none).unwrap_err().is_usage());
}

#[test]
fn every_plant_is_found_and_gone_again() {
    let loops = (0..8).map(|n| format!("loop{n}")).chain(["loop-control".to_owned()]);
    let devices: Vec<String> = loops.filter(|name| std::path::Path::new("/dev").join(name).exists()).collect();
    let program = binary("mkleak", "mkleak");
    let Some(arena) = Arena::showing(&program, json!({"devices": devices})) else { return };
    let list = std::process::Command::new(&program).args(["--list", "--json"]).output().unwrap();
    let list: Vec<serde_json::Value> = serde_json::from_slice(&list.stdout).unwrap();
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    for entry in &list {
        let (name, kind) = (entry["name"].as_str().unwrap(), entry["kind"].as_str().unwrap().parse().unwrap());
        match arena.plant(program.to_str().unwrap(), name, kind) {
            None => eprintln!("{name}: skipped"),
            Some(Ok(())) => drop(seen.insert(kind)),
            Some(Err(why)) => wrong.push(why),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    eprintln!("{seen:?}");
}

/// `cargo test --release -p leakcheck --test observe_arena -- --ignored --nocapture`
#[test]
#[ignore = "measures, and asserts nothing"]
fn what_a_snapshot_costs() {
    let Some(arena) = Arena::up() else { return };
    for _ in 0..6 {
        arena.sh("sleep 1000 & exit 0");
    }
    arena.sh("for n in 1 2 3 4 5 6 7 8; do echo x >/tmp/$n; echo x >/etc/$n; done");
    let measure = |kinds: &[Kind]| {
        let mut times: Vec<u64> = (0..200).map(|_| arena.snapshot(kinds).took_ns / 1000).collect();
        times.sort_unstable();
        (times[0], times[100])
    };
    for kind in Kind::ALL {
        if kind != Kind::Lockfile {
            let (least, median) = measure(&[kind]);
            println!("{kind:10} {least:6} {median:6} µs");
        }
    }
    let (least, median) = measure(&[]);
    println!("{:10} {least:6} {median:6} µs; {} processes", "all", arena.snapshot(&[]).processes.len());
}
