//! The JSON of reports is a contract: fields are added, never renamed.

mod canned;

use canned::*;
use leakcheck::guard::compare;
use leakcheck::judge::allow::Rules;
use leakcheck::judge::attribute::Attribution;
use leakcheck::judge::class::Class;
use leakcheck::judge::report::{Allowed, Command, Report, Settling, Transient, UnusedRule, Vanished};
use leakcheck::snapshot::Level;
use leakcheck::{Kind, Leak, Verdict};
use serde_json::{Value, json};

fn full() -> Report {
    let mut report = Report::empty("boot".to_owned(), host().coverage);
    report.coverage.0.retain(|kind, _| *kind == Kind::Process);
    report.coverage.lower(Kind::Mount, Level::Partial, "why");
    let (kind, label, key) = (Kind::File, "file /tmp/f".to_owned(), "file:0:7:3@5#0".to_owned());
    let leak = Leak {
        kind,
        class: Class::Orphaned,
        label: label.clone(),
        attribution: Attribution::Creator,
        key: key.clone(),
        evidence: json!({"who": "uid 0"}).as_object().unwrap().clone(),
    };
    report.verdict = Verdict::Leaked;
    report.unattributed.push(Leak { attribution: Attribution::None, ..leak.clone() });
    report.leaks.push(leak);
    report.transient.push(Transient { kind, label: label.clone(), key: key.clone(), gone_after_ms: 1.5 });
    report.allowed.push(Allowed { kind, label: label.clone(), key: key.clone(), reason: "r".to_owned() });
    report.unused_rules.push(UnusedRule { kind, reason: "r".to_owned() });
    report.vanished.push(Vanished { kind, label, key });
    report.noise = 3;
    report.gauges.insert("dying_cgroups".to_owned(), [1, 2]);
    report.command = Some(Command { argv: vec!["true".to_owned()], exit: Some(0) });
    report.settle = Settling { looks: 6, ms: 500.0, extended: false };
    report.timing_ms.insert("run".to_owned(), 2.0);
    report
}

#[test]
fn the_fields_of_a_report_keep_their_names() {
    let named = json!({"kind": "file", "label": "file /tmp/f", "key": "file:0:7:3@5#0"});
    let and = |more: Value| {
        let mut all = named.as_object().unwrap().clone();
        all.extend(more.as_object().unwrap().clone());
        Value::Object(all)
    };
    let evidence = json!({"who": "uid 0"});
    let expected = json!({
        "schema": "leakcheck.report/1",
        "verdict": "leaked",
        "boot_id": "boot",
        "scope": "host",
        "leaks": [and(json!({"class": "orphaned", "attribution": "creator", "evidence": evidence}))],
        "unattributed": [and(json!({"class": "orphaned", "attribution": "none", "evidence": evidence}))],
        "transient": [and(json!({"gone_after_ms": 1.5}))],
        "allowed": [and(json!({"reason": "r"}))],
        "unused_rules": [{"kind": "file", "reason": "r"}],
        "noise": 3,
        "baseline_ns": 0,
        "vanished": [named],
        "coverage": {"process": {"level": "full", "reason": ""}, "mount": {"level": "partial", "reason": "why"}},
        "unreadable": [],
        "gauges": {"dying_cgroups": [1, 2]},
        "command": {"argv": ["true"], "exit": 0},
        "settle": {"looks": 6, "ms": 500.0, "extended": false},
        "timing_ms": {"run": 2.0},
        "others": [],
    });
    let written = serde_json::to_value(full()).unwrap();
    let expected_fields = expected.as_object().unwrap();
    for (name, value) in expected_fields {
        assert_eq!(written.get(name), Some(value), "{name}");
    }
    let new: Vec<_> = written.as_object().unwrap().keys().filter(|k| !expected_fields.contains_key(*k)).collect();
    assert!(new.is_empty(), "add {new:?} to this test");
    assert_eq!(serde_json::from_value::<Report>(written).unwrap(), full());
}

#[test]
fn the_words_of_a_report_keep_their_spelling() {
    let attributions = [
        (Attribution::Descent, "descent"),
        (Attribution::Token, "token"),
        (Attribution::Cgroup, "cgroup"),
        (Attribution::Namespace, "namespace"),
        (Attribution::Creator, "creator"),
        (Attribution::Holder, "holder"),
        (Attribution::Own, "own"),
        (Attribution::Scope, "scope"),
        (Attribution::None, "none"),
    ];
    for (attribution, word) in attributions {
        assert_eq!(serde_json::to_value(attribution).unwrap(), word);
        assert_eq!(attribution.to_string(), word);
    }
    for (class, word) in [
        (Class::Orphaned, "orphaned"),
        (Class::Held, "held"),
        (Class::Dying, "dying"),
        (Class::Bounded, "bounded"),
        (Class::Reclaimable, "reclaimable"),
        (Class::Growing, "growing"),
    ] {
        assert_eq!(serde_json::to_value(class).unwrap(), word);
        assert_eq!(class.to_string(), word);
    }
    for (verdict, word, code) in
        [(Verdict::Clean, "clean", 0), (Verdict::Leaked, "leaked", 1), (Verdict::Unknown, "unknown", 3)]
    {
        assert_eq!((serde_json::to_value(verdict).unwrap(), verdict.exit_code()), (word.into(), code));
    }
    for kind in Kind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        assert_eq!(kind.as_str().parse::<Kind>().unwrap(), kind);
    }
}

#[test]
fn a_comparison_names_what_appeared_and_what_vanished() {
    let before = with(host(), [file("/tmp/old", 1).into(), sysctl("10").into()]);
    let report = compare(&before, &with(host(), one_of_each()), &Rules::default(), None).unwrap();
    assert_eq!(report.verdict, Verdict::Leaked);
    let kinds: Vec<Kind> = report.leaks.iter().map(|l| l.kind).collect();
    // The descriptor goes with its process: one leak, one line.
    let expected: Vec<Kind> = Kind::ALL.into_iter().filter(|k| *k != Kind::Fd).collect();
    assert_eq!(kinds, expected, "every kind, in report order");
    assert_eq!(report.leaks.last().map(|l| l.label.as_str()), Some("setting vm.swappiness = 60 (was 10)"));
    assert!(report.leaks.iter().all(|l| !l.label.is_empty() && l.evidence["inspect"] != ""));
    assert!(report.leaks.iter().all(|l| l.evidence["look"] == l.evidence["inspect"]));
    assert_eq!(report.vanished.len(), 1);
    assert_eq!(report.vanished[0].label, "file /tmp/old");
}

#[test]
fn a_comparison_counts_what_a_process_leaked_that_was_there_before() {
    let daemon = || [process(7, 70).into(), fd(7, 0, "/dev/null").into()];
    let mut leaked = fd(7, 5, "pipe:[9]");
    leaked.start = 70;
    let after = with(with(host(), daemon()), [leaked.into()]);
    let report = compare(&with(host(), daemon()), &after, &Rules::default(), None).unwrap();
    let found: Vec<_> = report.leaks.iter().map(|l| (l.kind, l.attribution)).collect();
    assert_eq!(found, [(Kind::Fd, Attribution::None)]);
}

#[test]
fn hostile_names_are_escaped_in_labels_and_keys() {
    let name = b"/tmp/\x1b]0;x\x07\n\xff<script>";
    let report = compare(&host(), &with(host(), [file(name, 9).into()]), &Rules::default(), None).unwrap();
    let leak = &report.leaks[0];
    assert_eq!(leak.label, r"file /tmp/\x1b]0;x\x07\n\xff<script>");
    let json = serde_json::to_string(&report).unwrap();
    assert!(!json.chars().any(char::is_control), "{json}");
}
