//! Diff, attribution, allow rules, settling, classes, verdict: pure, and tested on canned data.

pub mod allow;
pub mod attribute;
pub mod class;
pub mod diff;
mod provenance;
pub mod report;
pub mod settle;
pub mod verdict;
