//! For `cargo test`: a test that leaves something behind fails, and names it.
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
//! What belongs to a test is told by descent from the test *process*, and `cargo test` runs the tests of one file as threads of
//! one process. So guarded tests wait for each other: at most one runs at a time. A test without a guard does not wait, and
//! what it starts or opens meanwhile would be taken for the guarded test's. Hence one of:
//!
//! - put the guarded tests into a file of their own below `tests/`, where every test begins with a guard (each such file is
//!   a process of its own, and cargo runs one after the other);
//! - `cargo test -- --test-threads=1`;
//! - `cargo nextest run`, which gives every test its own process.
//!
//! `tests/example_suite.rs` in this crate is a suite to copy.

use std::cell::Cell;
use std::fmt::Write;
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

/// Guarded tests of one process, one after the other.
static ALONE: Mutex<()> = Mutex::new(());

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// What a test is asked about. The default is processes and descriptors, those of the test process included, which
/// an ordinary user can see in full as well.
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
    /// Looks for these kinds. Most others can be seen in full by root only.
    pub fn kinds(mut self, kinds: impl IntoIterator<Item = Kind>) -> Self {
        self.guard.observe.kinds = Some(kinds.into_iter().collect::<KindSet>());
        self
    }

    /// Looks for files below these directories only (the default is [`DEFAULT_ROOTS`](crate::observe::DEFAULT_ROOTS)), once
    /// [`Kind::File`] is asked for.
    pub fn roots<P: Into<std::path::PathBuf>>(mut self, roots: impl IntoIterator<Item = P>) -> Self {
        self.guard.observe.roots = Some(roots.into_iter().map(Into::into).collect());
        self
    }

    /// Accepts residue of a kind. [`Options::rules`] speaks more exactly.
    pub fn allow(mut self, kind: Kind, reason: &str) -> Self {
        let rule = Rule { kind, patterns: Default::default(), reason: reason.to_owned(), expires: None };
        self.guard.rules.rules.push(rule);
        self
    }

    /// Accepts what these rules explain, as an allow file has them.
    pub fn rules(mut self, rules: Rules) -> Self {
        self.guard.rules.rules.extend(rules.rules);
        self
    }

    /// Waits at least so long for what is about to go, and up to eight times as long while survivors run. Nothing waits when
    /// nothing is left. The default is half a second.
    pub fn settle(mut self, at_least: Duration) -> Self {
        self.guard.policy = Policy::new(at_least);
        self
    }

    /// Residue of which nothing tells whose it is does not count: for a machine where others work as well.
    pub fn attributed_only(mut self) -> Self {
        self.guard.attributed_only = true;
        self
    }

    /// A test passes even when not everything that was asked for could be seen.
    pub fn allow_unknown(mut self, reason: &str) -> Self {
        self.unknown = Some(reason.to_owned());
        self
    }

    /// Begins to guard.
    ///
    /// # Panics
    /// As [`NoLeaks::new`].
    pub fn guard(self) -> NoLeaks {
        NoLeaks::with(self)
    }
}

/// Guards a test from where it is made to where it is dropped; the drop panics when something was left.
///
/// What a test starts and opens must be dropped first, so this is made first.
#[must_use = "a guard that is dropped at once guards nothing: bind it to a name such as _guard"]
pub struct NoLeaks {
    // Dropped before the lock is.
    guard: Option<Guard>,
    unknown: Option<String>,
    _alone: Alone,
}

/// The turn of one guarded test.
struct Alone {
    _lock: MutexGuard<'static, ()>,
}

impl Alone {
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
    /// When the baseline cannot be taken, and when this thread has a guard already.
    #[allow(clippy::new_without_default, reason = "this starts a guard, which is not a neutral value")]
    pub fn new() -> Self {
        NoLeaks::with(Options::default())
    }

    /// Guards with other options.
    ///
    /// # Panics
    /// As [`NoLeaks::new`].
    pub fn with(options: Options) -> Self {
        let alone = Alone::wait();
        match Guard::begin(options.guard) {
            Ok(guard) => NoLeaks { guard: Some(guard), unknown: options.unknown, _alone: alone },
            Err(e) => {
                drop(alone);
                panic!("leakcheck: cannot take a baseline: {e}");
            }
        }
    }

    /// Name and value of an environment variable that marks a process as this test's, for what something else starts on its
    /// behalf (a daemon, a service manager).
    pub fn token(&self) -> (&'static str, String) {
        let token = self.guard.as_ref().map(|g| g.token().1.to_owned());
        (guard::TOKEN_NAME, token.unwrap_or_default())
    }

    /// Ends the guard and hands the report out, for a test that expects a leak.
    ///
    /// # Errors
    /// When the machine could not be looked at.
    pub fn report(mut self) -> Result<Report> {
        match self.guard.take() {
            Some(mut guard) => guard.end(None),
            None => Err(Error::usage("this guard has ended")),
        }
    }

    /// Why the test must fail, if it must.
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
            if std::thread::panicking() {
                eprintln!("{complaint}");
            } else {
                panic!("{complaint}");
            }
        }
    }
}

/// Runs a closure and panics when it left something behind.
///
/// ```
/// let sum = leakcheck::testing::verify_none(|| 1 + 1);
/// assert_eq!(sum, 2);
/// ```
///
/// # Panics
/// When something was left, when processes or descriptors could not be seen in full, and as [`NoLeaks::new`].
pub fn verify_none<T>(run: impl FnOnce() -> T) -> T {
    let guard = NoLeaks::new();
    let result = run();
    drop(guard);
    result
}

/// A report for people: a line a leak and where to look further, or what was not seen.
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
    let _ = write!(text, "\n    {}; look: {}", fact("who"), fact("look"));
}
