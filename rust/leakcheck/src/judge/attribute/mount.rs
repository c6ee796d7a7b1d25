//! Whose a mount is, by the namespaces that it is in.

use std::collections::HashSet;

use super::{Attribution, Attributor, Owner, Provenance, member};
use crate::parse::nslink::NsType;
use crate::resource::{Mount, MountId, Resource};
use crate::scope::Scope;

impl<P: Provenance> Attributor<'_, P> {
    pub(super) fn mount(&self, mount: &Mount) -> Owner {
        if let MountId::Unique(id) = mount.id {
            let by_event = member(self.provenance.mount(id), Attribution::Creator);
            if by_event != Owner::Unknown {
                return by_event;
            }
        }
        let ns = mount.ns;
        if ns == 0 {
            let pid = mount.holder.rsplit(' ').next().and_then(|word| word.parse().ok());
            return pid.map_or(Owner::Unknown, |pid: u32| self.held_by([pid]));
        }
        if self.fresh_ns(ns) {
            return self.in_namespace(NsType::Mnt, ns);
        }
        match self.holders.get(&(NsType::Mnt, ns)).filter(|_| !self.is_own_mount_ns(ns)) {
            // Only strangers mount in an old namespace that contains only strangers, but others' mounts may propagate
            // into it.
            Some(holders) => match self.namespace(holders) {
                Owner::Stranger
                    if !self.provenance.watches_mounts(ns) && self.is_still_there(ns) && self.may_come_in(mount) =>
                {
                    Owner::Unknown
                }
                told => told,
            },
            None => Owner::Unknown,
        }
    }

    /// Whether a mount namespace of the baseline still has any of its mounts. If not, another namespace reuses its
    /// inode, and all its mounts are new.
    fn is_still_there(&self, ns: u64) -> bool {
        let common = || {
            let old: HashSet<(u64, &MountId)> = self.baseline.mounts.iter().map(|m| (m.ns, &m.id)).collect();
            self.look.mounts.iter().filter(|m| old.contains(&(m.ns, &m.id))).map(|m| m.ns).collect()
        };
        self.lasting.get_or_init(common).contains(&ns)
    }

    /// Whether mounts from elsewhere propagate to this mount (mount_namespaces(7)): to a slave, or to a peer of a mount
    /// in another namespace.
    fn may_come_in(&self, mount: &Mount) -> bool {
        let target = mount.target.as_ref();
        let above = |m: &&Mount| {
            let point = m.target.as_ref();
            let rest = target.strip_prefix(point.strip_suffix(b"/").unwrap_or(point));
            m.ns == mount.ns && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        // If several are mounted at one point, each may be the parent; the deepest points are the nearest.
        let nearest = self.baseline.mounts.iter().filter(above).max_by_key(|m| m.target.as_ref().len());
        nearest.is_none_or(|below| {
            let words = below.propagation.as_ref().split(|b| *b == b' ');
            let peer = |word: &[u8]| {
                let elsewhere =
                    |m: &Mount| m.ns != below.ns && m.propagation.as_ref().split(|b| *b == b' ').any(|w| w == word);
                word.starts_with(b"shared:") && self.baseline.mounts.iter().any(elsewhere)
            };
            words.into_iter().any(|word| word.starts_with(b"master:") || peer(word))
        })
    }

    /// Whether it is a namespace, or a mount in one, that the machine had before the scope's first process entered it.
    pub fn was_only_entered(&self, resource: &Resource) -> bool {
        if !matches!(self.look.scope, Scope::Cgroup(_) | Scope::Tree(_)) {
            return false;
        }
        match resource {
            Resource::Namespace(n) => self.is_the_machines(n.ino),
            Resource::Mount(m) => self.is_the_machines(m.ns) && !self.baseline.mounts.iter().any(|old| old.ns == m.ns),
            _ => false,
        }
    }

    /// Whether a namespace is the observer's own or an initial one (include/linux/proc_ns.h: later ones have an inode
    /// of at least `PROC_DYNAMIC_FIRST`).
    fn is_the_machines(&self, ino: u64) -> bool {
        (0xEFFF_FF00..0xF000_0000).contains(&ino) || self.look.own_ns.values().any(|own| *own == ino)
    }

    pub(super) fn is_own_mount_ns(&self, ns: u64) -> bool {
        self.own_mount_ns() == Some(ns)
    }

    /// Inode of the observer's own mount namespace.
    pub fn own_mount_ns(&self) -> Option<u64> {
        self.look.own_ns.get(&NsType::Mnt).copied()
    }
}
