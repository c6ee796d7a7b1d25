//! Plans print and parse back; what is no plan is refused at the character where it stops being one.

use leakcheck_plan::{ParseError, Plan};
use proptest::prelude::*;

/// Kind, argument and flags as the grammar has them.
fn parts() -> impl Strategy<Value = (String, String, Vec<String>)> {
    let argument = prop_oneof![Just(String::new()), "[^,\\s\\x1c-\\x1f]{1,20}"];
    ("[a-z][a-z-]{0,9}", argument, prop::collection::vec("[a-z]{1,8}", 0..4))
}

/// Lines that are nearly plans, and lines of anything.
fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), "[a-z:,\\- @.0-9]{0,12}", "[a-z-]{0,3}:?[^,]{0,6}(,[a-z]{0,2}){0,3}.?"]
}

proptest! {
    #[test]
    fn a_line_of_the_grammar_gives_its_parts_and_prints_back((kind, argument, flags) in parts()) {
        let mut line = kind.clone();
        if !argument.is_empty() {
            line = format!("{line}:{argument}");
        }
        for flag in &flags {
            line = format!("{line},{flag}");
        }
        let plan: Plan = line.parse().unwrap();
        prop_assert_eq!((plan.kind(), plan.argument(), plan.flags()), (&*kind, &*argument, &*flags));
        prop_assert_eq!(plan.to_string(), line);
    }

    #[test]
    fn any_line_is_printed_back_as_it_was_or_refused_at_one_of_its_characters(line in hostile()) {
        match line.parse::<Plan>() {
            Ok(plan) => prop_assert_eq!(plan.to_string(), line),
            Err(ParseError { at, found }) => {
                prop_assert_eq!(line.chars().nth(at - 1), found);
                prop_assert!(at <= line.chars().count() + 1);
            }
        }
    }
}

#[test]
fn what_is_no_plan_is_refused_where_it_stops_being_one() {
    for (line, at, found) in [
        ("", 1, None),
        ("-a", 1, Some('-')),
        ("Normal", 1, Some('N')),
        ("normal ", 7, Some(' ')),
        ("a b", 2, Some(' ')),
        ("forced:", 8, None),
        ("forced:,sleeping", 8, Some(',')),
        ("forced:é b", 9, Some(' ')),
        ("forced:a\x1fb", 9, Some('\x1f')),
        ("forced:a,", 10, None),
        ("forced:a,b,", 12, None),
        ("forced:a,b-c", 11, Some('-')),
        ("forced,b:c", 9, Some(':')),
        ("crash\n", 6, Some('\n')),
    ] {
        assert_eq!(line.parse::<Plan>(), Err(ParseError { at, found }), "{line:?}");
    }
}

#[test]
fn the_error_says_what_where_and_what_to_give() {
    let said = |line: &str| line.parse::<Plan>().unwrap_err().to_string();
    assert_eq!(said("a\x1bb"), r"unexpected '\u{1b}' at character 2; give KIND[:ARGUMENT][,FLAG]");
    assert_eq!(said("a:"), "unexpected end at character 3; give KIND[:ARGUMENT][,FLAG]");
}
