//! The final verdict.

use serde::{Deserialize, Serialize};

use crate::snapshot::{CoverageMap, Level};

/// The verdict. Ordered from best to worst, so that `max` merges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything requested was seen, and nothing was left.
    Clean,
    /// Nothing was found, but not everything was seen.
    Unknown,
    /// Something was left.
    Leaked,
}

impl Verdict {
    /// Derived from the number of leaks and the coverage.
    pub fn of(leaks: usize, coverage: &CoverageMap) -> Self {
        if leaks > 0 {
            return Verdict::Leaked;
        }
        let seen = coverage.0.values().all(|c| match c.level {
            Level::Full => true,
            Level::Partial | Level::None => false,
        });
        // A look without any kind proves nothing.
        if seen && !coverage.0.is_empty() { Verdict::Clean } else { Verdict::Unknown }
    }

    /// The worse of two.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        self.max(other)
    }

    /// Exit code of the command.
    pub fn exit_code(self) -> i32 {
        match self {
            Verdict::Clean => 0,
            Verdict::Leaked => 1,
            Verdict::Unknown => 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;

    fn coverage(levels: &[(Kind, Level)]) -> CoverageMap {
        let mut map = CoverageMap::default();
        for (kind, level) in levels {
            map.lower(*kind, *level, "why");
        }
        map
    }

    #[test]
    fn what_was_not_seen_is_never_clean() {
        for level in [Level::Partial, Level::None] {
            let map = coverage(&[(Kind::Process, Level::Full), (Kind::Mount, level)]);
            assert_eq!(Verdict::of(0, &map), Verdict::Unknown);
        }
        assert_eq!(Verdict::of(0, &CoverageMap::default()), Verdict::Unknown);
    }

    #[test]
    fn a_leak_beats_a_gap() {
        assert_eq!(Verdict::of(1, &coverage(&[(Kind::Mount, Level::None)])), Verdict::Leaked);
    }

    #[test]
    fn merging_is_worst_wins_in_every_order() {
        use Verdict::{Clean, Leaked, Unknown};
        let all = [Clean, Unknown, Leaked];
        for a in all {
            for b in all {
                assert_eq!(a.merge(b), b.merge(a));
                assert!(a.merge(b) >= a && a.merge(b) >= b);
                for c in all {
                    assert_eq!(a.merge(b).merge(c), a.merge(b.merge(c)));
                }
            }
        }
        assert_eq!(Clean.merge(Unknown), Unknown);
        assert_eq!(Leaked.merge(Unknown), Leaked);
    }
}
