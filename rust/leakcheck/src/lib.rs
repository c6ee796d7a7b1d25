//! Proves that a Linux sandbox leaves nothing behind.
//!
//! [`observe::snapshot`] observes, [`judge::diff`] compares identities, and [`Guard`] does both around a run. It
//! returns a [`Report`] whose verdict is never *clean* if something was not observed.
//!
//! A test suite needs three verbs: [`NoLeaks::new`](testing::NoLeaks::new) guards a test, [`testing::verify_none`] a
//! closure, and [`NoLeaks::report`](testing::NoLeaks::report) hands out the report instead of panicking. See
//! [`testing`].

mod arena;
mod coverage;
pub mod error;
mod freeze;
pub mod guard;
pub mod kind;
mod membership;
mod own_fd;
pub mod resource;
mod rights;
pub mod scope;
pub mod snapshot;
pub mod testing;
mod this_process;
mod token;

// For the Python binding and for the crate's own tests: not a stable interface.
#[doc(hidden)]
pub mod doctor;
#[doc(hidden)]
pub mod judge;
#[doc(hidden)]
pub mod observe;
#[doc(hidden)]
pub mod persist;
#[doc(hidden)]
pub mod reap;
#[doc(hidden)]
pub mod watch;

pub use arena::{ArenaView, Layer};
pub use error::{Error, Result};
pub use guard::{Guard, Options};
pub use judge::report::{self, Leak, Report};
pub use judge::verdict::Verdict;
pub use kind::{Kind, KindSet};
#[doc(hidden)]
pub use leakcheck_parse as parse;
pub use leakcheck_parse::text;
pub use observe::ObservedArena;
pub use scope::Scope;
pub use snapshot::Snapshot;
pub use testing::NoLeaks;
