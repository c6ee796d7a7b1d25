//! Allow rules, on canned files and details.

mod canned;

use std::path::Path;

use canned::*;
use leakcheck::guard::compare;
use leakcheck::judge::allow::{Rules, details};
use leakcheck::resource::*;
use leakcheck::{Error, Kind, Verdict};

fn day() -> jiff::civil::Date {
    jiff::civil::date(2026, 6, 15)
}

fn parse(text: &str) -> Result<Rules, Error> {
    Rules::parse(text, Path::new("/etc/allow.toml"), day())
}

/// The message of a file that must be refused; it always names the file.
fn refused(text: &str) -> String {
    let error = parse(text).expect_err(text);
    assert!(error.is_usage());
    let message = error.to_string();
    assert!(message.starts_with("/etc/allow.toml: "), "{message}");
    assert!(!message.contains('\n'), "one line: {message}");
    message
}

const GOOD: &str = "# known\n\n[[allow]]\nkind = 'file'\nreason = 'a cache'\nmatch = { path = '/tmp/cache/*' }\n";

#[test]
fn a_wrong_file_is_refused_with_its_line_and_what_to_do() {
    for (text, parts) in [
        ("[[allow]\nkind = 'file'", &["line 1", "[[allow]] table"][..]),
        ("[[allow]]\nkind = 'file'\nreason = 'r'\nwhy = 'x'", &["line 4", "unknown field", "kind, reason"][..]),
        ("[[deny]]\nkind = 'file'\nreason = 'r'", &["line 1", "unknown field", "[[allow]]"][..]),
        ("\n[[allow]]\nkind = 'file'", &["line 2", "missing field `reason`"][..]),
        ("\n\n[[allow]]\nreason = 'r'", &["line 3", "missing field `kind`"][..]),
        ("[[allow]]\nkind = 7\nreason = 'r'", &["line 2", "expected a string"][..]),
        ("[[allow]]\nkind = 'file'\nreason = 'r'\nexpires = 'soon'", &["line 4", "invalid type"][..]),
        (
            &format!("{GOOD}\n[[allow]]\nkind = 'files'\nreason = 'r'"),
            &["rule at line 8", "unknown kind \"files\"", "choose from process, fd"][..],
        ),
        (
            &format!("{GOOD}[[allow]]\nkind = 'file'\nreason = '  '"),
            &["rule at line 7", "reason is empty", "say why"][..],
        ),
        (
            "[[allow]]\nkind = 'fd'\nreason = 'r'\n[allow.match]\npath = '/x'",
            &["rule at line 1", "fd has no detail \"path\"", "choose from pid, fd, target"][..],
        ),
        (
            "[[allow]]\nkind = 'file'\nreason = 'r'\nmatch = { path = '[' }",
            &["rule at line 1", "pattern \"[\" of path"][..],
        ),
        ("[[allow]]\nkind = 'file'\nreason = 'r'\nexpires = 10:00:00", &["rule at line 1", "write a date such as"][..]),
        (
            "[[allow]]\nkind = 'file'\nreason = 'r'\nexpires = 2026-06-14",
            &["rule at line 1", "expired on 2026-06-14", "remove the rule"][..],
        ),
    ] {
        let message = refused(text);
        for part in parts {
            assert!(message.contains(part), "{text:?}\n  gives {message:?}\n  which lacks {part:?}");
        }
    }
}

#[test]
fn a_missing_file_is_refused_with_its_name() {
    let error = Rules::load(Path::new("/nowhere/allow.toml")).unwrap_err();
    assert!(error.is_usage() && error.to_string().starts_with("/nowhere/allow.toml: cannot be read"), "{error}");
}

#[test]
fn a_rule_holds_until_the_end_of_its_last_day() {
    let text = "[[allow]]\nkind = 'key'\nreason = 'r'\nexpires = 2026-06-15";
    assert_eq!(parse(text).unwrap().rules[0].expires, Some(day()));
    assert!(parse("").unwrap().rules.is_empty());
}

#[test]
fn every_pattern_of_a_rule_must_match_and_the_first_rule_explains() {
    let text = "[[allow]]\nkind='file'\nreason='a'\nmatch={path='/tmp/*', class='dir'}\n\
                [[allow]]\nkind='file'\nreason='b'\nmatch={path='/tmp/*'}\n[[allow]]\nkind='file'\nreason='c'";
    let rules = parse(text).unwrap();
    let explains = |path: &str, class: &str| {
        rules.explains(Kind::File, |name| match name {
            "path" => Some(path.to_owned()),
            "class" => Some(class.to_owned()),
            _ => None,
        })
    };
    assert_eq!(explains("/tmp/a/b", "dir"), Some(0), "a star crosses directories");
    assert_eq!(explains("/tmp/a", "file"), Some(1));
    assert_eq!(explains("/var/a", "file"), Some(2));
    assert_eq!(rules.explains(Kind::Process, |_| Some(String::new())), None, "another kind's rules say nothing");
    assert_eq!(parse(GOOD).unwrap().explains(Kind::File, |_| None), None, "a detail that is not known matches nothing");
}

fn judged(rules: &str, resource: Resource) -> leakcheck::Report {
    compare(&host(), &with(host(), [resource]), &parse(rules).unwrap(), None).unwrap()
}

#[test]
fn a_rule_matches_hostile_names_as_they_are_shown() {
    let rule = |pattern: &str| format!("[[allow]]\nkind='file'\nreason='r'\nmatch={{ path='{pattern}' }}");
    let shown = r"/tmp/a\x1b[[]31m\n\xff<b>";
    let name = b"/tmp/a\x1b[31m\n\xff<b>";
    let report = judged(&rule(shown), file(name, 9).into());
    assert_eq!((report.verdict, report.allowed.len()), (Verdict::Clean, 1));
    assert_eq!(report.allowed[0].reason, "r");
    for other in [r"/tmp/a?[[]31m\n\xff<b>", r"/tmp/b*"] {
        assert_eq!(judged(&rule(other), file(name, 9).into()).verdict, Verdict::Leaked, "{other}");
    }
    assert_eq!(judged(&rule("/tmp/a*<b>"), file(name, 9).into()).verdict, Verdict::Clean, "a star takes escapes too");
    let disguised = file(r"/tmp/a\n", 9);
    assert_eq!(judged(&rule("/tmp/a\\n"), disguised.into()).verdict, Verdict::Leaked, "a backslash is no newline");
}

#[test]
fn a_mode_is_matched_in_octal_as_people_write_it() {
    let rule = "[[allow]]\nkind='file'\nreason='r'\nmatch={mode='0644'}";
    assert_eq!(judged(rule, file("/tmp/f", 9).into()).verdict, Verdict::Clean);
}

#[test]
fn unused_rules_are_reported_with_their_reason() {
    let rules = "[[allow]]\nkind='file'\nreason='used'\n[[allow]]\nkind='mount'\nreason='not used'";
    let report = judged(rules, file("/tmp/f", 9).into());
    let unused: Vec<_> = report.unused_rules.iter().map(|r| (r.kind, r.reason.as_str())).collect();
    assert_eq!(unused, [(Kind::Mount, "not used")]);
}

#[test]
fn every_detail_that_a_rule_may_name_is_known_of_some_record() {
    // Looked up in /proc of a live process, or by who holds it, or known in an arena only; a canned record has none of these.
    let looked_up = ["argv", "exe", "cgroup", "uid", "comm", "path", "state"];
    for resource in one_of_each() {
        let kind = resource.kind();
        for name in details(kind) {
            let json = serde_json::to_value(&resource).unwrap();
            assert!(json.get(name).is_some() || looked_up.contains(name), "{kind} has no {name}: {json}");
        }
    }
}
