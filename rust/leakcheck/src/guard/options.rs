//! How to guard a run.

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
}

impl Options {
    /// This process, if its own descriptors count. An arena has none of them.
    pub(super) fn own_pid(&self) -> Option<u32> {
        (self.observe.include_self && self.observe.arena.is_none()).then(std::process::id)
    }
}
