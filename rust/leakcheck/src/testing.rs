//! For `cargo test`: a test that leaves something behind fails, and the message names it.
//!
//! ```no_run
//! use leakcheck::NoLeaks;
//!
//! #[test]
//! fn a_box_is_gone_after_its_run() {
//!     let _guard = NoLeaks::new();
//!     // … what must leave nothing behind
//! }
//! ```
//!
//! A guard attributes resources by descent from the test *process*, and `cargo test` runs the tests of one file as
//! threads of one process. So guarded tests wait for each other: at most one runs at a time. A test without a guard
//! does not wait, and the guard would attribute what it starts or opens to the guarded test. Therefore do one of the
//! following:
//!
//! - put the guarded tests into a file of their own below `tests/`, where every test starts with a guard (each such
//!   file is a process of its own, and cargo runs one after the other);
//! - `cargo test -- --test-threads=1`;
//! - `cargo nextest run`, which gives every test its own process.
//!
//! Rust gives a drop no caller: `#[track_caller]` has no effect there, and a panic in it has the line of the drop's own code. So
//! its message names the line of the guard. [`NoLeaks::assert_clean`] panics at the line that calls it.
//!
//! `tests/example_suite.rs` in this crate is a suite to copy.

use std::cell::Cell;
use std::fmt::Write;
use std::panic::Location;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::guard::{self, Guard};
use crate::judge::allow::{Rule, Rules};
use crate::judge::report::{Leak, Report};
use crate::judge::settle::Policy;
use crate::judge::verdict::Verdict;
use crate::kind::{Kind, KindSet};
use crate::text::harmless;

/// Serialises the guarded tests of one process.
static ALONE: Mutex<()> = Mutex::new(());

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// What a guarded test checks. The default is processes and descriptors, including those of the test process, which an
/// unprivileged user can see in full too.
#[derive(Clone, Debug)]
#[must_use]
pub struct Options {
    guard: guard::Options,
    unknown: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        let mut guard = guard::Options::default();
        guard.observe.kinds = Some([Kind::Process, Kind::Fd].into_iter().collect());
        guard.observe.include_self = true;
        Options { guard, unknown: None }
    }
}

impl Options {
    /// Checks these kinds. Only root can see most others in full.
    pub fn kinds(mut self, kinds: impl IntoIterator<Item = Kind>) -> Self {
        self.guard.observe.kinds = Some(kinds.into_iter().collect::<KindSet>());
        self
    }

    /// Checks only files below these directories (the default is [`DEFAULT_ROOTS`](crate::observe::DEFAULT_ROOTS)), if
    /// [`Kind::File`] is requested.
    pub fn roots<P: Into<std::path::PathBuf>>(mut self, roots: impl IntoIterator<Item = P>) -> Self {
        self.guard.observe.roots = Some(roots.into_iter().map(Into::into).collect());
        self
    }

    /// Accepts residue of a kind. [`Options::rules`] is more precise.
    pub fn allow(mut self, kind: Kind, reason: &str) -> Self {
        let rule = Rule { kind, patterns: Default::default(), reason: reason.to_owned(), expires: None };
        self.guard.rules.rules.push(rule);
        self
    }

    /// Accepts what these rules explain; an allow file contains such rules.
    pub fn rules(mut self, rules: Rules) -> Self {
        self.guard.rules.rules.extend(rules.rules);
        self
    }

    /// Waits at least this long for what is about to disappear, and up to eight times as long while survivors run. It
    /// does not wait if nothing is left. The default is half a second.
    pub fn settle(mut self, at_least: Duration) -> Self {
        self.guard.policy = Policy::new(at_least);
        self
    }

    /// Ignores residue that cannot be attributed to the test: for a machine that others use too.
    pub fn attributed_only(mut self) -> Self {
        self.guard.attributed_only = true;
        self
    }

    /// Lets a test pass even if not everything requested could be seen.
    pub fn allow_unknown(mut self, reason: &str) -> Self {
        self.unknown = Some(reason.to_owned());
        self
    }

    /// Starts the guard.
    ///
    /// # Panics
    /// As [`NoLeaks::new`].
    #[track_caller]
    pub fn guard(self) -> NoLeaks {
        NoLeaks::with(self)
    }
}

/// Guards a test from its creation to its drop; the drop panics if something was left, and names the line of its
/// creation.
///
/// Create it first, so that everything the test starts and opens is dropped before it.
#[must_use = "a guard that is dropped at once guards nothing: bind it to a name such as _guard"]
pub struct NoLeaks {
    // Dropped before the lock is.
    guard: Option<Guard>,
    unknown: Option<String>,
    created: &'static Location<'static>,
    _alone: Alone,
}

/// The turn of one guarded test.
struct Alone {
    _lock: MutexGuard<'static, ()>,
}

impl Alone {
    #[track_caller]
    fn wait() -> Self {
        assert!(!GUARDED.get(), "this test already has a guard: a second one would wait for the first one forever");
        let lock = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        GUARDED.set(true);
        Alone { _lock: lock }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        GUARDED.set(false);
    }
}

impl NoLeaks {
    /// Guards processes and descriptors.
    ///
    /// # Panics
    /// If the baseline cannot be taken, or if this thread already has a guard.
    #[allow(clippy::new_without_default, reason = "this starts a guard, which is not a neutral value")]
    #[track_caller]
    pub fn new() -> Self {
        NoLeaks::with(Options::default())
    }

    /// Guards with other options.
    ///
    /// # Panics
    /// As [`NoLeaks::new`].
    #[track_caller]
    pub fn with(options: Options) -> Self {
        let alone = Alone::wait();
        let (unknown, created) = (options.unknown, Location::caller());
        match Guard::begin(options.guard) {
            Ok(guard) => NoLeaks { guard: Some(guard), unknown, created, _alone: alone },
            Err(e) => {
                drop(alone);
                panic!("leakcheck: cannot take a baseline: {e}");
            }
        }
    }

    /// Name and value of an environment variable that marks a process as this test's, for processes that something else
    /// (a daemon, a service manager) starts for the test.
    pub fn token(&self) -> (&'static str, String) {
        let token = self.guard.as_ref().map(|g| g.token().1.to_owned());
        (guard::TOKEN_NAME, token.unwrap_or_default())
    }

    /// Ends the guard and returns the report, for a test that expects a leak.
    ///
    /// # Errors
    /// If the machine could not be observed.
    pub fn report(mut self) -> Result<Report> {
        match self.guard.take() {
            Some(mut guard) => guard.end(None),
            None => Err(Error::usage("this guard has ended")),
        }
    }

    /// Ends the guard as its drop does, but here: what is still open now counts, and a panic has this line as its place.
    ///
    /// # Panics
    /// If something was left, if what was requested could not be seen in full, or if the machine could not be observed.
    #[track_caller]
    pub fn assert_clean(mut self) {
        if let Some(complaint) = self.complaint() {
            panic!("{complaint}\n  guarded from {}", self.created);
        }
    }

    /// Why the test must fail; none if it passes.
    fn complaint(&mut self) -> Option<String> {
        let report = match self.guard.take()?.end(None) {
            Ok(report) => report,
            Err(e) => return Some(format!("leakcheck: the check itself failed, so the test does not pass: {e}")),
        };
        match report.verdict {
            Verdict::Clean => None,
            Verdict::Leaked => Some(describe(&report)),
            Verdict::Unknown if self.unknown.is_some() => None,
            Verdict::Unknown => Some(describe(&report)),
        }
    }
}

impl Drop for NoLeaks {
    fn drop(&mut self) {
        if let Some(complaint) = self.complaint() {
            // Nobody calls a drop: its panic has this place, whatever `#[track_caller]` says.
            let complaint = format!("{complaint}\n  guarded from {}", self.created);
            if std::thread::panicking() {
                eprintln!("{complaint}");
            } else {
                panic!("{complaint}");
            }
        }
    }
}

/// Runs a closure and panics if it left something behind.
///
/// ```
/// let sum = leakcheck::testing::verify_none(|| 1 + 1);
/// assert_eq!(sum, 2);
/// ```
///
/// # Panics
/// If something was left, if processes or descriptors could not be seen in full, and as [`NoLeaks::new`].
#[track_caller]
pub fn verify_none<T>(run: impl FnOnce() -> T) -> T {
    let mut guard = NoLeaks::new();
    let result = run();
    if let Some(complaint) = guard.complaint() {
        panic!("{complaint}");
    }
    result
}

/// A report for people: per leak, what it is and a command that shows more; or what was not seen.
pub fn describe(report: &Report) -> String {
    let mut text = match report.verdict {
        Verdict::Clean => "clean".to_owned(),
        Verdict::Leaked => format!("leaked {}:", report.leaks.len()),
        Verdict::Unknown => "found nothing, but could not see everything:".to_owned(),
    };
    for leak in &report.leaks {
        line(&mut text, leak);
    }
    let gaps = report.coverage.0.iter().filter(|(_, c)| !c.reason.is_empty());
    for (kind, coverage) in gaps.filter(|_| report.verdict != Verdict::Clean) {
        let _ = write!(text, "\n  partly seen or unseen: {kind}: {}", coverage.reason);
    }
    if report.verdict == Verdict::Unknown {
        text.push_str("\n  run as root, ask for fewer kinds, or allow it with allow_unknown(reason)");
    }
    harmless(&text).into_owned()
}

fn line(text: &mut String, leak: &Leak) {
    let fact = |name: &str| leak.evidence.get(name).and_then(|v| v.as_str()).unwrap_or_default();
    let _ = write!(text, "\n  {} ({}, attribution {})", leak.label, leak.class, leak.attribution);
    let _ = write!(text, "\n    {}; inspect: {}", fact("who"), fact("inspect"));
}
