//! Allow rules: residue that its owner knows and accepts, with a reason and optionally an expiry date.

use std::collections::BTreeMap;
use std::path::Path;

use glob::Pattern;
use serde::Deserialize;

use crate::error::{Error, Result, in_words};
use crate::kind::Kind;

/// One rule: a kind, patterns over details, a reason, an expiry date.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The kind that it applies to.
    pub kind: Kind,
    /// Detail → pattern (`*`, `?`, `[…]`); all must match.
    pub patterns: BTreeMap<String, Pattern>,
    /// Why the residue is acceptable.
    pub reason: String,
    /// Last day on which the rule holds.
    pub expires: Option<jiff::civil::Date>,
}

/// A set of rules.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// In the order of the file.
    pub rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    allow: Vec<toml::Spanned<RawRule>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    kind: String,
    #[serde(default, rename = "match")]
    patterns: BTreeMap<String, String>,
    reason: String,
    expires: Option<toml::value::Datetime>,
}

impl Rules {
    /// Reads the TOML of an allow file: `[[allow]]` tables with `kind`, `match`, `reason`, `expires`.
    ///
    /// # Errors
    /// [`Error::Saved`] that names the file, the line and what to do, for a wrong key or kind, a bad pattern, an empty
    /// reason, and a rule that expired before `today`.
    pub fn parse(text: &str, path: &Path, today: jiff::civil::Date) -> Result<Self> {
        let document: Document = toml::from_str(text).map_err(|e| Error::saved(path, toml_message(&e, text)))?;
        let rules = document.allow.into_iter().map(|raw| {
            let line = text[..raw.span().start.min(text.len())].matches('\n').count() + 1;
            rule(raw.into_inner(), today).map_err(|why| Error::saved(path, format!("rule at line {line}: {why}")))
        });
        Ok(Rules { rules: rules.collect::<Result<_>>()? })
    }

    /// Reads an allow file.
    ///
    /// # Errors
    /// As [`Rules::parse`], and when the file cannot be read.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::saved(path, format!("cannot be read: {}", in_words(e))))?;
        Rules::parse(&text, path, today())
    }

    /// The first rule that explains a resource of `kind` whose details are `detail(name)`.
    pub fn explains(&self, kind: Kind, detail: impl Fn(&str) -> Option<String>) -> Option<usize> {
        self.rules.iter().position(|rule| {
            rule.kind == kind
                && rule.patterns.iter().all(|(name, pattern)| detail(name).is_some_and(|value| pattern.matches(&value)))
        })
    }
}

/// Today, in UTC.
pub fn today() -> jiff::civil::Date {
    jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date()
}

fn toml_message(error: &toml::de::Error, text: &str) -> String {
    let line = error.span().map(|s| text[..s.start.min(text.len())].matches('\n').count() + 1);
    let place = line.map(|l| format!("line {l}: ")).unwrap_or_default();
    let what = error.message().lines().next().unwrap_or_default().to_owned();
    format!("{place}{what}: a rule is an [[allow]] table with kind, reason, and optionally match and expires")
}

fn rule(raw: RawRule, today: jiff::civil::Date) -> std::result::Result<Rule, String> {
    let kind: Kind = raw.kind.parse().map_err(|e: Error| e.to_string())?;
    if raw.reason.trim().is_empty() {
        return Err("the reason is empty: say why this residue is acceptable".to_owned());
    }
    let mut patterns = BTreeMap::new();
    for (name, pattern) in raw.patterns {
        let known = details(kind);
        if !known.contains(&name.as_str()) {
            return Err(format!("{kind} has no detail {name:?}: choose from {}", known.join(", ")));
        }
        let parsed = Pattern::new(&pattern).map_err(|e| format!("pattern {pattern:?} of {name}: {e}"))?;
        patterns.insert(name, parsed);
    }
    let expires = match raw.expires {
        None => None,
        Some(when) => Some(date(&when).ok_or_else(|| format!("expires {when}: write a date such as 2027-01-31"))?),
    };
    if let Some(last) = expires.filter(|last| *last < today) {
        return Err(format!("expired on {last}: remove the rule or set a new date"));
    }
    Ok(Rule { kind, patterns, reason: raw.reason, expires })
}

fn date(when: &toml::value::Datetime) -> Option<jiff::civil::Date> {
    let d = when.date?;
    jiff::civil::Date::new(i16::try_from(d.year).ok()?, i8::try_from(d.month).ok()?, i8::try_from(d.day).ok()?).ok()
}

/// The details that a rule can match: the record's fields, and the evidence that is looked up for each difference.
pub fn details(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Process => &["pid", "ppid", "state", "comm", "argv", "exe", "cgroup", "uid"],
        Kind::Fd => &["pid", "fd", "target", "comm", "exe"],
        Kind::Mount => &["ns", "target", "root", "fs_type", "source", "holder"],
        Kind::Cgroup => &["hierarchy", "path", "dir"],
        Kind::Lock => &["class", "ino", "pid", "access", "path"],
        Kind::Lockfile => &["path", "state", "pid"],
        Kind::File => &["path", "class", "uid", "mode", "state"],
        Kind::Ipc => &["class", "id", "name", "uid"],
        Kind::Namespace => &["ns_type", "ino"],
        Kind::Net => &["class", "name", "scope", "netns", "uid"],
        Kind::Loop => &["device", "backing"],
        Kind::Key => &["key_type", "description", "uid"],
        Kind::Bpf => &["class", "id"],
        Kind::Sysctl => &["path", "value", "before"],
    }
}
