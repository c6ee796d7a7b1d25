//! Turns the resources that one look shows and the baseline does not into leaks with evidence.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde_json::Value;

use super::others;
use crate::arena::ArenaView;
use crate::judge::allow::Rules;
use crate::judge::attribute::{Attribution, Attributor, Owner, Provenance};
use crate::judge::class::{Class, classify};
use crate::judge::report::REPLACES;
use crate::judge::report::{Allowed, Leak, Report, UnusedRule};
use crate::judge::verdict::Verdict;
use crate::kind::Kind;
use crate::observe::detail;
use crate::resource::{IpcClass, Mount, Net, NetClass, NsHolder, Resource};
use crate::scope::Scope;
use crate::snapshot::{Level, Snapshot};
use crate::text::Text;

/// Sorts findings into leaks and allowed residue, and sets the verdict.
pub(super) fn finish(report: &mut Report, found: Vec<Remnant>, rules: &Rules, attributed_only: bool) {
    let mut used = BTreeSet::new();
    for remnant in found {
        let explained = remnant.explained_by(rules);
        let Remnant { key, resource, by, class, label, facts } = remnant;
        let kind = resource.kind();
        if let Some(n) = explained {
            used.insert(n);
            report.allowed.push(Allowed { kind, label, key, reason: rules.rules[n].reason.clone() });
            continue;
        }
        // A new machine-wide resource may or may not be the run's. If nothing shows which process made it, the verdict
        // cannot be *clean*.
        if report.scope == Scope::Arena && by == Attribution::None && matches!(kind, Kind::Key | Kind::Loop | Kind::Bpf)
        {
            report.coverage.lower(
                kind,
                Level::Partial,
                "something new may come from the arena or from elsewhere: the arena's system calls were not recorded",
            );
        }
        let leak = Leak { kind, class, label, attribution: by, key, evidence: facts };
        // Nothing tells which process changed a setting, but an arena's snapshot shows it only because the machine's
        // value is different now.
        let setting = kind == Kind::Sysctl && report.scope == Scope::Arena;
        if attributed_only && by == Attribution::None && !setting {
            report.unattributed.push(leak);
        } else {
            report.leaks.push(leak);
        }
    }
    report.leaks.sort_by(|a, b| (a.kind, &a.key).cmp(&(b.kind, &b.key)));
    for (_, rule) in rules.rules.iter().enumerate().filter(|(n, _)| !used.contains(n)) {
        report.unused_rules.push(UnusedRule { kind: rule.kind, reason: rule.reason.clone() });
    }
    report.verdict = Verdict::of(report.leaks.len(), &report.coverage);
}

/// A detail in the form that rules match: as it is displayed. An unknown detail matches nothing.
pub(super) fn plain(name: &str, value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(s) => Some(s.clone()),
        Value::Number(n) if name == "mode" => n.as_u64().map(|mode| format!("{mode:04o}")),
        other => Some(other.to_string()),
    }
}

pub(super) fn gauges(before: &Snapshot, after: &Snapshot, report: &mut Report) {
    for (name, now) in &after.gauges {
        report.gauges.insert(name.clone(), [before.gauges.get(name).copied().unwrap_or(0), *now]);
    }
}

/// Residue with everything that a report needs, looked up while it exists.
#[derive(Clone)]
pub(super) struct Remnant {
    pub(super) key: String,
    pub(super) resource: Resource,
    pub(super) by: Attribution,
    pub(super) class: Class,
    pub(super) label: String,
    pub(super) facts: serde_json::Map<String, Value>,
}

impl Remnant {
    pub(super) fn new<P: Provenance>(
        resource: Resource,
        by: Attribution,
        observation: &Snapshot,
        attributor: &Attributor<'_, P>,
        arena: Option<&ArenaView>,
    ) -> Self {
        let populated = |c: &crate::resource::Cgroup| detail::cgroup_processes(c).is_some_and(|p| !p.is_empty());
        let parent = attributor.own_pid().filter(|pid| !adopts_orphans(*pid));
        let class = classify(&resource, observation, parent, |ns| attributor.fresh_ns(ns), populated);
        let evidence = detail::evidence(&resource, observation, arena);
        Remnant { key: resource.key(), resource, by, class, label: evidence.label, facts: evidence.facts }
    }

    /// The number of the rule that explains it.
    pub(super) fn explained_by(&self, rules: &Rules) -> Option<usize> {
        let field = |name: &str| self.facts.get("resource").and_then(|fields| fields.get(name));
        let detail = |name: &str| self.facts.get(name).or_else(|| field(name)).and_then(|value| plain(name, value));
        rules.explains(self.resource.kind(), detail)
    }
}

/// Whether orphans may become children of this process (prctl(2), `PR_SET_CHILD_SUBREAPER`): they look like children that
/// it started.
fn adopts_orphans(own_pid: u32) -> bool {
    own_pid == 1 || !matches!(rustix::process::child_subreaper(), Ok(None))
}

/// Marks residue in a place where something else was at the baseline: the place is not the run's, so reap must not
/// remove it. At a target with several mounts, this holds if there are no more of them `now` than at the baseline.
pub(super) fn replacing(mut found: Vec<Remnant>, baseline: &Snapshot, now: &Snapshot) -> Vec<Remnant> {
    let name = |r: &Resource| match r {
        Resource::File(f) if f.mapped_by.is_none() => Some(f.path.clone()),
        Resource::Lockfile(f) => Some(f.path.clone()),
        Resource::Ipc(i) if i.class == IpcClass::PosixShm => Some(i.name.clone()),
        _ => None,
    };
    let names: HashSet<Text> = found.iter().filter_map(|f| name(&f.resource)).collect();
    let shm = baseline.ipc.iter().filter(|i| i.class == IpcClass::PosixShm).map(|i| &i.name);
    let before = baseline.files.iter().map(|f| &f.path).chain(baseline.lock_files.iter().map(|f| &f.path)).chain(shm);
    let before: HashSet<&Text> = before.filter(|path| names.contains(*path)).collect();
    let cgroups: HashSet<(&Text, &Text)> = baseline.cgroups.iter().map(|c| (&c.hierarchy, &c.path)).collect();
    let (mounted, mounted_now) = (mounts_by_target(baseline), mounts_by_target(now));
    for one in &mut found {
        let replaces = match &one.resource {
            Resource::Cgroup(c) => cgroups.contains(&(&c.hierarchy, &c.path)),
            Resource::Mount(m) => mounted_now.get(&m.target).unwrap_or(&0) <= mounted.get(&m.target).unwrap_or(&0),
            other => name(other).is_some_and(|path| before.contains(&path)),
        };
        if replaces {
            one.facts.insert(REPLACES.to_owned(), Value::Bool(true));
        }
    }
    found
}

fn mounts_by_target(snapshot: &Snapshot) -> HashMap<&Text, usize> {
    let mut counts = HashMap::new();
    for mount in &snapshot.mounts {
        *counts.entry(&mount.target).or_default() += 1;
    }
    counts
}

pub(super) struct Residue {
    pub(super) found: Vec<(Resource, Attribution)>,
    pub(super) noise: u64,
    /// The noise that outlives a request: no descriptors, locks or mappings.
    pub(super) strange: Vec<Resource>,
}

/// The resources that are not a stranger's, without those that only repeat another leak.
pub(super) fn residue<P: Provenance>(appeared: Vec<Resource>, attributor: &Attributor<'_, P>) -> Residue {
    let mut out = Residue { found: Vec::new(), noise: 0, strange: Vec::new() };
    // A scope's first process makes things visible that the machine already had.
    for resource in appeared.into_iter().filter(|r| !attributor.was_only_entered(r)) {
        match attributor.owner(&resource) {
            Owner::Run(by) => out.found.push((resource, by)),
            Owner::Unknown => out.found.push((resource, Attribution::None)),
            Owner::Stranger => {
                out.noise += 1;
                if others::counts(&resource) && out.strange.len() < others::MOST {
                    out.strange.push(resource);
                }
            }
        }
    }
    fold(&mut out.found, attributor);
    out
}

/// A leaked process's descriptors, and the mounts of a namespace that a leaked process is in, go with the process: one
/// leak, one line.
pub(super) fn fold<P: Provenance>(found: &mut Vec<(Resource, Attribution)>, attributor: &Attributor<'_, P>) {
    let leaked: HashSet<(u32, u64)> = found
        .iter()
        .filter_map(|(r, _)| match r {
            Resource::Process(p) => Some((p.pid, p.start)),
            _ => None,
        })
        .collect();
    let inhabited: HashSet<u64> = found
        .iter()
        .filter_map(|(r, _)| match r {
            Resource::Namespace(n) => {
                let by_leaked =
                    |h: &NsHolder| matches!(h, NsHolder::Process(pid, start) if leaked.contains(&(*pid, *start)));
                n.holders.iter().any(by_leaked).then_some(n.ino)
            }
            _ => None,
        })
        .collect();
    // A mount here also propagates into other namespaces: it goes there when it goes here.
    let own = attributor.own_mount_ns();
    let here: HashSet<(u64, Text)> = found
        .iter()
        .filter_map(|(r, _)| match r {
            Resource::Mount(m) if Some(m.ns) == own => Some((m.dev, m.root.clone())),
            _ => None,
        })
        .collect();
    let came_in = |m: &Mount| {
        m.ns != 0 && Some(m.ns) != own && !attributor.fresh_ns(m.ns) && here.contains(&(m.dev, m.root.clone()))
    };
    // Removing a table removes everything in it, and removing a chain or a set what is in that.
    let nftables: HashSet<(u64, NetClass, Text)> = found
        .iter()
        .filter_map(|(r, _)| match r {
            Resource::Net(n) => {
                use NetClass::{Ipset, IptablesChain, NftChain, NftSet, NftTable};
                matches!(n.class, NftTable | NftChain | NftSet | IptablesChain | Ipset)
                    .then(|| (n.netns, n.class, n.name.clone()))
            }
            _ => None,
        })
        .collect();
    let tables: Vec<(u64, &Text)> =
        nftables.iter().filter(|(_, c, _)| *c == NetClass::NftTable).map(|(ns, _, t)| (*ns, t)).collect();
    let in_found = |n: &Net| {
        let holds = |class| nftables.contains(&(n.netns, class, n.scope.clone()));
        // The scope of a rule starts with the scope of its table.
        let of_table = |(ns, table): &(u64, &Text)| {
            *ns == n.netns && n.scope.as_ref().strip_prefix(table.as_ref()).is_some_and(|rest| rest.starts_with(b" "))
        };
        match n.class {
            NetClass::NftRule => holds(NetClass::NftChain) || tables.iter().any(of_table),
            NetClass::NftElement => holds(NetClass::NftSet) || tables.iter().any(of_table),
            NetClass::IpsetElement => holds(NetClass::Ipset),
            NetClass::NftChain | NetClass::NftSet | NetClass::NftObject | NetClass::NftFlowtable => {
                holds(NetClass::NftTable)
            }
            NetClass::IptablesRule => n
                .scope
                .as_bytes()
                .split(|byte| *byte == b':')
                .next()
                .is_some_and(|chain| nftables.contains(&(n.netns, NetClass::IptablesChain, chain.into()))),
            _ => false,
        }
    };
    let interfaces: HashSet<(u64, u64)> = found
        .iter()
        .filter_map(|(r, _)| match r {
            Resource::Net(n) => (n.class == NetClass::Interface).then_some((n.netns, n.number)),
            _ => None,
        })
        .collect();
    // What configures an interface or a namespace ends with it.
    let configures_found = |n: &Net| {
        n.class.is_configuration() && (interfaces.contains(&(n.netns, n.number)) || attributor.fresh_ns(n.netns))
    };
    found.retain(|(r, _)| match r {
        Resource::Net(n) => !in_found(n) && !configures_found(n),
        Resource::Fd(fd) => !leaked.contains(&(fd.pid, fd.start)),
        Resource::Mount(m) => !inhabited.contains(&m.ns) && !attributor.is_copy(m) && !came_in(m),
        _ => true,
    });
}
