//! The comparison of two snapshots, on canned data.

mod canned;

use canned::*;
use leakcheck::guard::compare;
use leakcheck::judge::allow::Rules;
use leakcheck::judge::diff::diff;
use leakcheck::resource::*;
use leakcheck::snapshot::{Directory, Level, Unreadable};
use leakcheck::{Error, Kind, KindSet, Scope, Snapshot, Verdict};

fn usage(before: &Snapshot, after: &Snapshot) -> String {
    match diff(before, after) {
        Err(Error::Usage(message)) => message,
        other => panic!("expected a usage error, not {other:?}"),
    }
}

#[test]
fn a_resource_of_every_kind_appears_and_vanishes() {
    for resource in one_of_each() {
        let (empty, full) = (host(), with(host(), [resource.clone()]));
        let grown = diff(&empty, &full).unwrap();
        assert_eq!((grown.appeared, grown.vanished), (vec![resource.clone()], vec![]));
        let shrunk = diff(&full, &empty).unwrap();
        assert_eq!((shrunk.appeared, shrunk.vanished), (vec![], vec![resource]));
        assert!(diff(&full, &full).unwrap().is_empty());
    }
}

#[test]
fn what_describes_a_resource_is_no_difference_but_its_identity_is() {
    let before = with(host(), [process(50, 10).into(), fd_on(50, 7, 3).into()]);
    let renamed = Process { state: 'Z', comm: text("else"), ppid: 2, ..process(50, 10) };
    let same = with(host(), [renamed.into(), Fd { target: text("/renamed"), ..fd_on(50, 7, 3) }.into()]);
    assert!(diff(&before, &same).unwrap().is_empty());
    let reused = with(host(), [process(50, 11).into(), fd_on(50, 7, 4).into()]);
    let d = diff(&before, &reused).unwrap();
    assert_eq!((d.appeared.len(), d.vanished.len()), (2, 2), "a reused pid and a reused number are new resources");
}

#[test]
fn a_free_lock_file_is_no_residue_but_any_other_state_is() {
    for (state, residue) in
        [(LockFileState::Free, 0), (LockFileState::Held, 1), (LockFileState::Stale, 1), (LockFileState::Corrupt, 1)]
    {
        let d = diff(&host(), &with(host(), [lock_file("/run/l", state).into()])).unwrap();
        assert_eq!(d.appeared.len(), residue, "{state:?}");
    }
    let free = with(host(), [lock_file("/run/l", LockFileState::Free).into()]);
    let stale = with(host(), [lock_file("/run/l", LockFileState::Stale).into()]);
    let d = diff(&free, &stale).unwrap();
    assert_eq!((d.appeared.len(), d.vanished.len()), (1, 0), "free that became stale is residue");
}

#[test]
fn snapshots_that_mean_different_things_are_refused_with_what_to_do() {
    let other_boot = Snapshot { boot_id: "later".to_owned(), ..host() };
    assert!(usage(&host(), &other_boot).contains("two boots (boot and later)"));
    let message = usage(&host(), &scoped(Scope::Tree(1)));
    assert!(message.contains("host and tree:1") && message.contains("--scope"), "{message}");
    let only = |kind: Kind| Snapshot { kinds: [kind].into_iter().collect(), ..host() };
    assert!(usage(&only(Kind::Process), &only(Kind::Mount)).contains("same --kinds"));
    let rooted = Snapshot { roots: vec!["/elsewhere".into()], ..host() };
    assert!(usage(&host(), &rooted).contains("same --roots"));
    let locked = Snapshot { lock_paths: vec!["/run/box.lock".into()], ..host() };
    assert!(usage(&host(), &locked).contains("same --lock-files"));
    let by = |start, taken_ns| Snapshot { observer: Some((9, start)), taken_ns, ..host() };
    assert!(usage(&by(20, 2), &by(10, 1)).contains("exchange them"));
    assert!(diff(&by(10, 2), &by(20, 1)).is_ok(), "the clock was set back in between");
    assert!(diff(&by(10, 2), &by(10, 1)).is_ok(), "the same in a guard, whose process takes both");
}

#[test]
fn files_of_a_root_that_is_another_directory_now_are_not_compared() {
    let root = |ino| Some(Directory { path: text("/tmp"), dev: 1, ino, ..Directory::default() });
    let at = |root| Snapshot { root_directories: vec![root], ..with(host(), [file("/tmp/x", 9).into()]) };
    let empty = |root| Snapshot { root_directories: vec![root], ..host() };
    let judged = |before: Snapshot, after: Snapshot| {
        let report = compare(&before, &after, &Rules::default(), None).unwrap();
        (report.verdict, report.leaks.len())
    };
    assert_eq!(judged(empty(root(2)), at(root(2))), (Verdict::Leaked, 1));
    assert_eq!(judged(empty(root(2)), at(root(3))), (Verdict::Unknown, 0));
    assert_eq!(judged(empty(root(2)), empty(None)), (Verdict::Unknown, 0));
    assert_eq!(judged(empty(None), at(root(2))), (Verdict::Leaked, 1));
    let unopened = || Some(Directory::default());
    assert_eq!(judged(empty(root(2)), empty(unopened())), (Verdict::Clean, 0), "its gap tells it");
}

#[test]
fn other_roots_do_not_matter_when_files_are_not_compared() {
    let kinds: KindSet = [Kind::Process].into_iter().collect();
    let before = Snapshot { kinds, ..host() };
    let after = Snapshot { kinds, roots: vec!["/elsewhere".into()], ..host() };
    assert!(diff(&before, &after).unwrap().is_empty());
}

#[test]
fn a_kind_that_only_one_snapshot_has_makes_the_comparison_unknown() {
    let narrow: KindSet = [Kind::Process].into_iter().collect();
    let wide: KindSet = [Kind::Process, Kind::Mount].into_iter().collect();
    let (a, b) = (Snapshot::empty(Scope::Host, wide), Snapshot::empty(Scope::Host, narrow));
    let report = compare(&a, &b, &Rules::default(), None).unwrap();
    assert_eq!(report.verdict, Verdict::Unknown);
    assert_eq!(report.coverage.0[&Kind::Mount].level, Level::None);
    assert_eq!(compare(&b, &b, &Rules::default(), None).unwrap().verdict, Verdict::Clean);
}

#[test]
fn helpers_outside_the_kinds_are_not_compared() {
    let only: KindSet = [Kind::Mount].into_iter().collect();
    let before = Snapshot { kinds: only, ..host() };
    let after = Snapshot { kinds: only, ..with(host(), [process(50, 10).into()]) };
    assert!(diff(&before, &after).unwrap().is_empty());
}

#[test]
fn a_process_that_refuses_to_be_read_makes_unknown_only_when_it_may_be_the_runs() {
    let refusing = |mut s: Snapshot, pid: u32, start: u64| {
        let hides = [Kind::Fd, Kind::Mount, Kind::Namespace, Kind::Ipc, Kind::Net].into_iter().collect();
        s.unreadable.push(Unreadable { pid, start, what: "fd: Permission denied".to_owned(), hides });
        with(s, [process(pid, start).into()])
    };
    let old = refusing(host(), 40, 1);
    let same = compare(&old, &old, &Rules::default(), None).unwrap();
    assert_eq!((same.verdict, same.unreadable.len()), (Verdict::Clean, 1), "listed, and nothing more");
    // Even when the process itself is explained, what it holds is not known.
    let new = refusing(old.clone(), 50, 10);
    let today = jiff::civil::date(2026, 1, 1);
    let text = "[[allow]]\nkind='process'\nreason='r'\nmatch={pid='50'}";
    let rules = Rules::parse(text, std::path::Path::new("allow.toml"), today).unwrap();
    let report = compare(&old, &new, &rules, None).unwrap();
    assert_eq!((report.verdict, report.leaks.len(), report.allowed.len()), (Verdict::Unknown, 0, 1));
    for kind in Kind::ALL {
        let hidden = matches!(kind, Kind::Fd | Kind::Mount | Kind::Namespace | Kind::Ipc | Kind::Net);
        let level = if hidden { Level::Partial } else { Level::Full };
        assert_eq!(report.coverage.0[&kind].level, level, "{kind}");
    }
}

#[test]
fn a_new_link_to_an_old_file_is_the_name_that_the_baseline_lacked_wherever_it_sorts() {
    let linked = |names: &[&str]| {
        let several = |n: usize, name: &&str| File { link: n as u32, ..file(name, 3) };
        with(host(), names.iter().enumerate().map(|(n, name)| several(n, name).into()))
    };
    let names = |found: &[Resource]| -> Vec<String> {
        found.iter().map(|r| if let Resource::File(f) = r { f.path.to_string() } else { String::new() }).collect()
    };
    let before = linked(&["/t/m"]);
    for (after, new) in [
        (&["/t/a", "/t/m"][..], &["/t/a"][..]),
        (&["/t/m", "/t/z"], &["/t/z"]),
        (&["/t/a", "/t/m", "/t/z"], &["/t/a", "/t/z"]),
        // Renamed.
        (&["/t/b"], &[]),
        (&["/t/b", "/t/c"], &["/t/c"]),
    ] {
        let after = linked(after);
        assert_eq!(names(&diff(&before, &after).unwrap().appeared), new);
        assert_eq!(names(&diff(&after, &before).unwrap().vanished), new);
        let keys = |s: &Snapshot| diff(&before, s).unwrap().appeared.iter().map(Resource::key).collect::<Vec<_>>();
        assert_eq!(keys(&after), keys(&after.clone()));
    }
}

#[test]
fn a_report_says_what_has_a_name_that_something_else_had_before() {
    let before = with(host(), [file("/t/old", 3).into(), cgroup(6, "/old").into(), mount(1, 7, "/m/old").into()]);
    let after =
        [file("/t/old", 4).into(), file("/t/new", 5).into(), cgroup(8, "/old").into(), cgroup(9, "/new").into()];
    let mounts = [mount(1, 10, "/m/old").into(), mount(1, 11, "/m/new").into()];
    let after = with(with(host(), after), mounts);
    let report = compare(&before, &after, &Rules::default(), None).unwrap();
    let replaces: Vec<_> =
        report.leaks.iter().map(|l| (l.label.as_str(), l.evidence.contains_key("replaces"))).collect();
    let kept: Vec<bool> = replaces.iter().map(|(label, _)| label.contains("old")).collect();
    assert_eq!(replaces.iter().map(|(_, replaces)| *replaces).collect::<Vec<_>>(), kept, "{replaces:?}");
    assert_eq!(kept.iter().filter(|old| **old).count(), 3, "{replaces:?}");
}

#[test]
fn a_mount_over_another_replaces_nothing() {
    let before = with(host(), [mount(1, 7, "/m").into()]);
    let report = compare(&before, &with(before.clone(), [mount(1, 8, "/m").into()]), &Rules::default(), None).unwrap();
    assert!(!report.leaks[0].evidence.contains_key("replaces"));
}
