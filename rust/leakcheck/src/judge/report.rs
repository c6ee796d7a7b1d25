//! The report: `leakcheck.report/1`. Fields are added, never renamed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::attribute::Attribution;
use super::class::Class;
use super::verdict::Verdict;
use crate::kind::Kind;
use crate::scope::Scope;
use crate::snapshot::{CoverageMap, Unreadable};

/// Residue that no rule explains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Leak {
    /// The kind.
    pub kind: Kind,
    /// Why it still exists.
    pub class: Class,
    /// A short description.
    pub label: String,
    /// Why it counts as the run's.
    pub attribution: Attribution,
    /// The identity as one line.
    pub key: String,
    /// `resource` (the record), `who`, `since`, `look` (a command that shows more), and details by kind.
    pub evidence: Map<String, Value>,
}

/// Residue that disappeared during settling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transient {
    /// The kind.
    pub kind: Kind,
    /// What it was.
    pub label: String,
    /// Its identity.
    pub key: String,
    /// Milliseconds from the run's end to the first look that missed it.
    pub gone_after_ms: f64,
}

/// Residue that a rule explains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Allowed {
    /// The kind.
    pub kind: Kind,
    /// What it is.
    pub label: String,
    /// Its identity.
    pub key: String,
    /// The rule's reason.
    pub reason: String,
}

/// A rule that matched nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnusedRule {
    /// Its kind.
    pub kind: Kind,
    /// Its reason.
    pub reason: String,
}

/// Something that existed before and no longer exists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vanished {
    /// The kind.
    pub kind: Kind,
    /// What it was.
    pub label: String,
    /// Its identity.
    pub key: String,
}

/// A process outside the run that existed before, and that made some of the noise itself or through its children. It
/// may have done so for the run, as a daemon does for its client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Other {
    /// Its process id.
    pub pid: u32,
    /// Its command name; empty if it has exited.
    pub comm: String,
    /// Whether it listens on a socket; none if sockets were not read.
    pub listens: Option<bool>,
    /// How many differences of each kind it made.
    pub made: BTreeMap<Kind, u64>,
}

/// The command of a guarded run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// Its arguments.
    pub argv: Vec<String>,
    /// Its exit code; −N if signal N killed it; none if it is not known.
    pub exit: Option<i32>,
}

/// How settling went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Settling {
    /// Looks made.
    pub looks: u32,
    /// Milliseconds from the run's end to the last look.
    pub ms: f64,
    /// Whether survivors or pressure extended it.
    pub extended: bool,
}

/// Evidence of a leak whose name referred to something else at the baseline: `true`.
pub(crate) const REPLACES: &str = "replaces";

/// The report of one run, or of one comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Always [`Report::SCHEMA`].
    pub schema: String,
    /// The verdict.
    pub verdict: Verdict,
    /// The boot that identities belong to.
    pub boot_id: String,
    /// The scope.
    #[serde(default)]
    pub scope: Scope,
    /// Start of the baseline in nanoseconds since the epoch, by the clock that file systems use for birth times; 0 in a
    /// report of a version that did not have it.
    #[serde(default)]
    pub baseline_ns: i64,
    /// The leaks.
    pub leaks: Vec<Leak>,
    /// Residue that cannot be attributed, if only attributed residue counts.
    pub unattributed: Vec<Leak>,
    /// Residue that disappeared during settling.
    pub transient: Vec<Transient>,
    /// Residue that a rule explains.
    pub allowed: Vec<Allowed>,
    /// Rules that matched nothing.
    pub unused_rules: Vec<UnusedRule>,
    /// How many differences were attributed to other processes.
    pub noise: u64,
    /// The processes that made some of them; those that listen and those that made most come first.
    #[serde(default)]
    pub others: Vec<Other>,
    /// What disappeared since the baseline (only in comparisons: on a host it says nothing about a run).
    pub vanished: Vec<Vanished>,
    /// How much of each kind was seen.
    pub coverage: CoverageMap,
    /// Processes that could not be read.
    pub unreadable: Vec<Unreadable>,
    /// Numbers that are not resources, before and after.
    pub gauges: BTreeMap<String, [i64; 2]>,
    /// The command that ran.
    pub command: Option<Command>,
    /// How settling went.
    pub settle: Settling,
    /// Milliseconds of each step.
    pub timing_ms: BTreeMap<String, f64>,
}

impl Report {
    /// The version of the JSON form.
    pub const SCHEMA: &'static str = "leakcheck.report/1";

    /// An empty report.
    pub fn empty(boot_id: String, coverage: CoverageMap) -> Self {
        Report {
            schema: Self::SCHEMA.to_owned(),
            verdict: Verdict::of(0, &coverage),
            boot_id,
            scope: Scope::Host,
            baseline_ns: 0,
            leaks: Vec::new(),
            unattributed: Vec::new(),
            transient: Vec::new(),
            allowed: Vec::new(),
            unused_rules: Vec::new(),
            noise: 0,
            others: Vec::new(),
            vanished: Vec::new(),
            coverage,
            unreadable: Vec::new(),
            gauges: BTreeMap::new(),
            command: None,
            settle: Settling::default(),
            timing_ms: BTreeMap::new(),
        }
    }
}
