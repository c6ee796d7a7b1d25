//! How the mounts of two looks relate.

use std::collections::HashSet;

use crate::resource::{Mount, MountId};
use crate::snapshot::Snapshot;

/// Mount namespaces that have a mount in common in both looks.
pub(super) fn lasting_namespaces(baseline: &Snapshot, observation: &Snapshot) -> HashSet<u64> {
    let old: HashSet<(u64, &MountId)> = baseline.mounts.iter().map(|m| (m.ns, &m.id)).collect();
    observation.mounts.iter().filter(|m| old.contains(&(m.ns, &m.id))).map(|m| m.ns).collect()
}

/// Whether mounts from elsewhere propagate to this mount (mount_namespaces(7)): to a slave, or to a peer of a mount
/// in another namespace.
pub(super) fn may_come_in(mount: &Mount, baseline: &Snapshot) -> bool {
    let target = mount.target.as_ref();
    let above = |m: &&Mount| {
        let point = m.target.as_ref();
        let rest = target.strip_prefix(point.strip_suffix(b"/").unwrap_or(point));
        m.ns == mount.ns && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    };
    // If several are mounted at one point, each may be the parent; the deepest points are the nearest.
    let nearest = baseline.mounts.iter().filter(above).max_by_key(|m| m.target.as_ref().len());
    nearest.is_none_or(|below| {
        let words = below.propagation.as_ref().split(|b| *b == b' ');
        let peer = |word: &[u8]| {
            let elsewhere =
                |m: &Mount| m.ns != below.ns && m.propagation.as_ref().split(|b| *b == b' ').any(|w| w == word);
            word.starts_with(b"shared:") && baseline.mounts.iter().any(elsewhere)
        };
        words.into_iter().any(|word| word.starts_with(b"master:") || peer(word))
    })
}
