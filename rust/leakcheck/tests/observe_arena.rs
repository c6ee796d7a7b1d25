//! An arena seen from outside: what is planted inside is found, and nothing else. Needs root.

mod arena_support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use arena_support::{Arena, binary};
use leakcheck::judge::attribute::Attribution;
use leakcheck::judge::diff::diff;
use leakcheck::resource::{FileState, Resource};
use leakcheck::{Kind, Report, Verdict, observe};

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

#[test]
fn files_are_told_apart_as_created_changed_and_deleted() {
    let Some(arena) = Arena::up() else { return };
    let script = "mkdir -p /etc/new.d && echo x >/etc/new.d/a && echo x >>/etc/passwd && rm /etc/group && chmod 600 /etc/hosts \
                  && echo x >/tmp/t";
    let report = arena.guarded(&[Kind::File], script);
    let mut found: Vec<(String, Option<FileState>)> = report
        .leaks
        .iter()
        .map(|l| serde_json::from_value(l.evidence["resource"].clone()).unwrap())
        .map(|r| match r {
            Resource::File(f) => (f.path.to_string(), f.state),
            other => panic!("{other:?}"),
        })
        .collect();
    found.sort();
    let expected = [
        ("/etc/group", Some(FileState::Deleted)),
        ("/etc/hosts", Some(FileState::Changed)),
        ("/etc/new.d", Some(FileState::Created)),
        ("/etc/new.d/a", Some(FileState::Created)),
        ("/etc/passwd", Some(FileState::Changed)),
        ("/tmp/t", None),
    ];
    assert_eq!(found, expected.map(|(path, state)| (path.to_owned(), state)));
    assert_eq!(report.gauges["touched_files"], [0, 0]);
}

/// Kinds of which others on the machine may make some.
const SHARED: [Kind; 3] = [Kind::Loop, Kind::Key, Kind::Bpf];

/// Runs one of mkleak's plants with a baseline before it, and says what is wrong; none when it cannot exist here.
fn plant(arena: &Arena, program: &str, name: &str, kind: Kind) -> Option<Result<(), String>> {
    let dir = if kind == Kind::File { "/var/lib" } else { "/tmp" };
    let mut mkleak = arena.start(&[program, name, "--dir", dir, "--hold"]);
    mkleak.line()?;
    let options = observe::Options { lock_files: vec!["/tmp".into()], ..arena.options(&[]) };
    let look = || observe::snapshot(&options).unwrap();
    let before = look();
    mkleak.go();
    let Some(facts) = mkleak.line() else {
        eprintln!("{name} cannot exist here");
        return None;
    };
    let appeared = diff(&before, &look()).unwrap().appeared;
    let kinds: BTreeSet<Kind> = appeared.iter().map(Resource::kind).collect();
    // A deleted file that is only mapped is no descriptor.
    let wanted = if name == "mmap-deleted" { Kind::File } else { kind };
    let found = kinds.contains(&wanted);
    mkleak.go();
    mkleak.line();
    let began = Instant::now();
    let mut left;
    loop {
        left = diff(&before, &look()).unwrap().appeared;
        left.retain(|r| !SHARED.contains(&r.kind()) || r.kind() == kind);
        if left.is_empty() || began.elapsed() > Duration::from_secs(5) {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    mkleak.wait();
    Some(match (found, left.is_empty()) {
        (false, _) => Err(format!("{name}: not found: {facts}; appeared: {kinds:?}")),
        (true, false) => Err(format!("{name}: left after it was cleaned: {left:?}")),
        (true, true) => Ok(()),
    })
}

#[test]
fn every_plant_is_found_and_gone_again() {
    let loops = (0..8).map(|n| format!("loop{n}")).chain(["loop-control".to_owned()]);
    let devices: Vec<String> = loops.filter(|name| std::path::Path::new("/dev").join(name).exists()).collect();
    let Some(arena) = Arena::with(serde_json::json!({"devices": devices})) else { return };
    let program = binary("mkleak", "mkleak");
    let list = std::process::Command::new(&program).args(["--list", "--json"]).output().unwrap();
    let list: Vec<serde_json::Value> = serde_json::from_slice(&list.stdout).unwrap();
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    for entry in &list {
        let (name, kind) = (entry["name"].as_str().unwrap(), entry["kind"].as_str().unwrap().parse().unwrap());
        match plant(&arena, program.to_str().unwrap(), name, kind) {
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
