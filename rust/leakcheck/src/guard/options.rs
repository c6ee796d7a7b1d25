//! How to guard a run.

use std::fmt;
use std::sync::Arc;

use super::kept::KeptWatch;
use crate::judge::allow::Rules;
use crate::judge::settle::Policy;
use crate::observe;

/// How to guard a run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What to observe.
    pub observe: observe::Options,
    /// Known and accepted residue.
    pub rules: Rules,
    /// How long to wait for teardown.
    pub policy: Policy,
    /// Residue that cannot be attributed to the run is listed separately and is not a leak. For many runs side by side.
    pub attributed_only: bool,
    /// Called before waits for teardown that has not been short: the caller may use the time for something else.
    pub waiting: Option<Waiting>,
    /// Where guards with the same value leave their watch for the next one; none if each opens its own.
    pub kept: Option<KeptWatch>,
}

/// What is called before a wait.
#[derive(Clone)]
pub struct Waiting(pub Arc<dyn Fn() + Send + Sync>);

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waiting")
    }
}

impl Options {
    /// This process, if its own descriptors count. An arena has none of them.
    pub(super) fn own_pid(&self) -> Option<u32> {
        (self.observe.include_self && self.observe.arena.is_none()).then(std::process::id)
    }
}
