//! Neutralises text in a log that a CI runner would execute as a command.

use std::borrow::Cow;

/// GitHub's commands (`::error::`), which its runner obeys only at the start of a line: they are broken up everywhere,
/// since output may be wrapped.
const COMMANDS: [&str; 20] = [
    "add-mask",
    "add-matcher",
    "add-path",
    "debug",
    "echo",
    "endgroup",
    "error",
    "group",
    "internal-set-repo-path",
    "notice",
    "remove-matcher",
    "save-state",
    "set-env",
    "set-output",
    "set-safe-dir",
    "set-secret",
    "set-task",
    "set-variable",
    "stop-commands",
    "warning",
];
/// What folds a log: GitLab, Travis.
const FOLDS: [&str; 4] = ["section_start:", "section_end:", "travis_fold:", "travis_time:"];
/// What starts a group at the start of a line: Buildkite.
const GROUPS: [&str; 4] = ["---", "+++", "~~~", "^^^"];

/// `text` with one character of each such command written as `\\xNN`; everything else stays. For output to people, not
/// for data.
///
/// Broken up are `##[…]`, `##vso[…]`, `##teamcity[…]` anywhere (GitHub, Azure Pipelines, TeamCity), `::command` at the start of a
/// line or of a word and GitHub's own anywhere, the escapes `%0A`, `%0D`, `%25`, `%3A` and `%2C`, that runners decode in a
/// command's value, and the marks that fold a log (GitLab, Travis, Buildkite).
///
/// ```
/// assert_eq!(leakcheck_parse::text::harmless("/tmp/##[error]x"), r"/tmp/#\x23[error]x");
/// assert_eq!(leakcheck_parse::text::harmless("suite.rs::test"), "suite.rs::test");
/// ```
#[must_use]
pub fn harmless(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let broken: Vec<usize> = (0..bytes.len()).filter(|&at| begins_command(bytes, at)).collect();
    if broken.is_empty() {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 3 * broken.len());
    let mut plain = 0;
    for at in broken {
        out.push_str(&text[plain..at]);
        out.push_str(&format!("\\x{:02x}", bytes[at]));
        plain = at + 1;
    }
    out.push_str(&text[plain..]);
    Cow::Owned(out)
}

/// Whether the ASCII character at `at` is the one of a command that is escaped.
fn begins_command(text: &[u8], at: usize) -> bool {
    let rest = &text[at..];
    let line_starts = || text[..at].iter().rev().take_while(|b| **b != b'\n').all(u8::is_ascii_whitespace);
    match rest[0] {
        b'#' => {
            let word = rest[1..].iter().take_while(|b| b.is_ascii_alphanumeric() || b"_.-".contains(b)).count();
            at > 0 && text[at - 1] == b'#' && rest.get(1 + word) == Some(&b'[')
        }
        b':' if rest.get(1) == Some(&b':') => {
            let name = &rest[2..];
            let end = name.iter().position(|b| !(b.is_ascii_alphanumeric() || *b == b'-')).unwrap_or(name.len());
            let known = COMMANDS.iter().any(|c| c.as_bytes().eq_ignore_ascii_case(&name[..end]));
            let first = at == 0 || text[at - 1].is_ascii_whitespace();
            known || first && name.first().is_some_and(u8::is_ascii_alphabetic)
        }
        b'%' => rest
            .get(1..3)
            .is_some_and(|code| [b"0a", b"0d", b"25", b"3a", b"2c"].iter().any(|c| code.eq_ignore_ascii_case(*c))),
        b's' | b'S' | b't' | b'T' => FOLDS
            .iter()
            .any(|fold| rest.get(..fold.len()).is_some_and(|word| word.eq_ignore_ascii_case(fold.as_bytes()))),
        b'-' | b'+' | b'~' | b'^' => GROUPS.iter().any(|group| rest.starts_with(group.as_bytes())) && line_starts(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn what_a_runner_would_obey_is_broken_up() {
        for (hostile, shown) in [
            ("file /t/##[error]azure", r"file /t/#\x23[error]azure"),
            ("###[group]", r"##\x23[group]"),
            ("a##vso[task.setvariable variable=x]v", r"a#\x23vso[task.setvariable variable=x]v"),
            ("##teamcity[testFailed]", r"#\x23teamcity[testFailed]"),
            ("##VSO[x]##[y]", r"#\x23VSO[x]#\x23[y]"),
            ("::error::x", r"\x3a:error::x"),
            ("/t/::Warning file=a::x", r"/t/\x3a:Warning file=a::x"),
            ("  ::token::", r"  \x3a:token::"),
            ("%0A::warning::z %0d%25", r"\x250A\x3a:warning::z \x250d\x2525"),
            ("x section_start:1:n", r"x \x73ection_start:1:n"),
            ("travis_fold:start:x", r"\x74ravis_fold:start:x"),
            ("--- a", r"\x2d-- a"),
            ("  +++ a", r"  \x2b++ a"),
            ("a\n^^^ +++", "a\n\\x5e^^ +++"),
        ] {
            assert_eq!(harmless(hostile), shown);
            assert_eq!(harmless(shown), shown, "what is shown is harmless itself");
        }
    }

    #[test]
    fn all_else_stays_as_it_is() {
        for plain in [
            "",
            "## heading",
            "# [x]",
            "a#[derive]",
            "test.py::Test::test_x",
            "::1",
            "[::1]:80",
            "100%",
            "%20",
            "a --- b",
            "-- x",
            "ü::ü",
            "日本##",
        ] {
            assert_eq!(harmless(plain), plain);
        }
    }
}
