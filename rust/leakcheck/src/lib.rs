//! Proves that a Linux sandbox leaves nothing behind.
//!
//! [`observe::snapshot`] sees, [`judge::diff`] compares identities, [`Guard`] does both around a run and gives a [`Report`]
//! whose verdict never says *clean* of what was not looked at.
//!
//! In a test suite, three verbs do: [`NoLeaks::new`](testing::NoLeaks::new) guards a test, [`testing::verify_none`] a closure, and
//! [`NoLeaks::report`](testing::NoLeaks::report) hands out the report instead of panicking. See [`testing`].

pub mod arena;
mod coverage;
pub mod doctor;
pub mod error;
mod freeze;
pub mod guard;
pub mod judge;
pub mod kind;
mod membership;
pub mod observe;
pub mod persist;
pub mod reap;
pub mod resource;
mod rights;
pub mod scope;
pub mod snapshot;
pub mod testing;
mod token;
pub mod watch;

pub use arena::{ArenaView, Layer};
pub use error::{Error, Result};
pub use guard::{Guard, Options};
pub use judge::report::{Leak, Report};
pub use judge::verdict::Verdict;
pub use kind::{Kind, KindSet};
pub use leakcheck_parse as parse;
pub use leakcheck_parse::text;
pub use observe::ObservedArena;
pub use scope::Scope;
pub use snapshot::Snapshot;
pub use testing::NoLeaks;
