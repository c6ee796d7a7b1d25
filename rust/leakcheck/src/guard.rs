//! A run between two observations: baseline, run, settle, verdict.
//!
//! ```no_run
//! use leakcheck::{Guard, Options, Verdict};
//!
//! # fn main() -> leakcheck::Result<()> {
//! let mut guard = Guard::begin(Options::default())?;
//! // … run the sandbox, with `guard.token()` in its environment if something else starts it …
//! let report = guard.end(None)?;
//! assert_eq!(report.verdict, Verdict::Clean, "{}", leakcheck::testing::describe(&report));
//! # Ok(())
//! # }
//! ```

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::Result;
use crate::judge::allow::Rules;
use crate::judge::attribute::{Attribution, Attributor, Membership, Owner, Provenance};
use crate::judge::class::{Class, classify};
use crate::judge::diff;
use crate::judge::report::{Allowed, Command, Leak, Report, Settling, Transient, UnusedRule, Vanished};
use crate::judge::settle::{Look, Policy, Settled, World, settle};
use crate::judge::verdict::Verdict;
use crate::kind::{Kind, KindSet};
use crate::observe::{self, detail};
use crate::resource::{NsHolder, Process, Resource};
use crate::scope::Scope;
use crate::snapshot::{CoverageMap, Level, Snapshot, Unreadable};
use crate::watch::{self, Watch};

/// Environment variable that marks the processes of a run.
pub const TOKEN_NAME: &str = "LEAKCHECK_RUN";

/// How to guard a run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What to observe.
    pub observe: observe::Options,
    /// Residue that is known and accepted.
    pub rules: Rules,
    /// How long to wait for teardown.
    pub policy: Policy,
    /// Residue that cannot be attributed to the run is listed apart and is no leak: for many runs side by side.
    pub attributed_only: bool,
}

/// A guarded run. The run is whatever this process starts from [`Guard::begin`] on, what descends from that, and what has the
/// [token](Guard::token) in its environment; with `include_self` also what this process itself opens.
pub struct Guard {
    options: Options,
    /// What is judged; what is observed may be more.
    asked: KindSet,
    watch: Watch,
    token: String,
    baseline: Snapshot,
    began: Instant,
    report: Option<Report>,
}

impl Guard {
    /// Takes the baseline and starts watching.
    ///
    /// # Errors
    /// What [`observe::snapshot`] raises.
    pub fn begin(mut options: Options) -> Result<Self> {
        let asked = options.observe.effective_kinds()?;
        let kinds = with_helpers(asked);
        options.observe.kinds = Some(kinds);
        let mut files: Vec<PathBuf> = Vec::new();
        if options.observe.scope == Scope::Host {
            if kinds.any(&[Kind::File, Kind::Ipc, Kind::Lockfile]) {
                files.extend(options.observe.effective_roots());
                files.extend(options.observe.lock_files.iter().filter_map(|f| Some(f.parent()?.to_owned())));
                files.push("/dev/shm".into());
            }
            if kinds.contains(Kind::Cgroup) {
                files.extend(observe::cgroup_mounts());
            }
        }
        // Watching starts before the baseline: what is new afterwards has its event.
        let mounts = kinds.contains(Kind::Mount) && options.observe.scope == Scope::Host;
        let watch = Watch::start(&watch::Options { root: std::process::id(), files, mounts });
        options.observe.hidden_fds.extend(watch.own_fds());
        let baseline = observe::snapshot(&options.observe)?;
        let token = random_token();
        Ok(Guard { options, asked, watch, token, baseline, began: Instant::now(), report: None })
    }

    /// Name and value of the environment variable that the run's processes should have.
    pub fn token(&self) -> (&'static str, &str) {
        (TOKEN_NAME, &self.token)
    }

    /// Adds rules for residue that turns out to be accepted while the run goes on; to be called before [`Guard::end`].
    pub fn allow(&mut self, rules: Rules) {
        self.options.rules.rules.extend(rules.rules);
    }

    /// The observation before the run.
    pub fn baseline(&self) -> &Snapshot {
        &self.baseline
    }

    /// The run has ended: waits for teardown, and judges what is left.
    ///
    /// # Errors
    /// What [`observe::snapshot`] raises. A check that failed is never a pass.
    pub fn end(&mut self, command: Option<Command>) -> Result<Report> {
        let run_ms = ms(self.began.elapsed());
        let mut report = self.judge()?;
        report.command = command;
        report.timing_ms.insert("run".to_owned(), run_ms);
        self.report = Some(report.clone());
        Ok(report)
    }

    /// Looks again after the target's own recovery: what it removed gets the class *reclaimable* and no longer counts for the
    /// verdict, what is still there stays as it was, and what the recovery itself left is added.
    ///
    /// # Errors
    /// As [`Guard::end`].
    pub fn recovered(&mut self) -> Result<Report> {
        let Some(mut report) = self.report.take() else { return self.end(None) };
        let mut after = self.judge()?;
        let left: HashSet<&str> = after.leaks.iter().map(|l| l.key.as_str()).collect();
        for leak in report.leaks.iter_mut().filter(|l| !left.contains(l.key.as_str())) {
            leak.class = Class::Reclaimable;
        }
        let known: HashSet<String> = report.leaks.iter().map(|l| l.key.clone()).collect();
        after.leaks.retain(|l| !known.contains(&l.key));
        report.leaks.append(&mut after.leaks);
        report.leaks.sort_by(|a, b| (a.kind, &a.key).cmp(&(b.kind, &b.key)));
        report.coverage.merge(&after.coverage);
        let kept = report.leaks.iter().filter(|l| l.class != Class::Reclaimable).count();
        report.verdict = Verdict::of(kept, &report.coverage);
        report.timing_ms.insert("recover".to_owned(), after.settle.ms);
        self.report = Some(report.clone());
        Ok(report)
    }

    fn judge(&self) -> Result<Report> {
        let live = Live { watch: Some(&self.watch), token: Some(&self.token) };
        judge(&self.baseline, &self.options, self.asked, &live)
    }
}

/// What must be observed to judge `asked`: by processes one knows whose residue is, and whether more may come; by descriptors
/// who holds a lock, a socket, a mount, a namespace or a BPF object; by namespaces whose the things inside are.
fn with_helpers(asked: KindSet) -> KindSet {
    use Kind::{Bpf, Fd, Ipc, Lock, Mount, Namespace, Net, Process};
    let mut helpers = vec![Process];
    if asked.any(&[Lock, Mount, Ipc, Namespace, Net, Bpf]) {
        helpers.push(Fd);
    }
    if asked.any(&[Mount, Ipc, Net]) {
        helpers.push(Namespace);
    }
    asked.iter().chain(helpers).collect()
}

/// Waits for teardown since `baseline` and judges what is left, with no knowledge of who made it: everything that appeared
/// counts.
///
/// # Errors
/// What [`observe::snapshot`] and [`diff::diff`] raise.
pub fn verify_none(baseline: &Snapshot, options: &Options) -> Result<Report> {
    let asked = options.observe.effective_kinds()?.and(baseline.kinds);
    judge(baseline, options, asked, &Live { watch: None, token: None })
}

/// Judges two snapshots that were taken before: no waiting, nothing looked up of the time between.
///
/// # Errors
/// [`Error::Usage`](crate::Error::Usage) when they cannot be compared.
pub fn compare(before: &Snapshot, after: &Snapshot, rules: &Rules) -> Result<Report> {
    let all = diff::diff(before, after)?;
    let live = Live { watch: None, token: None };
    let attributor = Attributor::new(before, after, &live, None);
    let asked = before.kinds.and(after.kinds);
    let residue = residue(all.appeared, &attributor);
    let mut coverage = coverage(before, after, asked, &attributor);
    for kind in Kind::ALL.into_iter().filter(|k| before.kinds.contains(*k) != after.kinds.contains(*k)) {
        coverage.lower(kind, Level::None, "only one of the two snapshots looked for it");
    }
    let mut report = Report::empty(after.boot_id.clone(), coverage);
    report.unreadable.clone_from(&after.unreadable);
    for resource in all.vanished {
        let label = detail::evidence(&resource, before).label;
        report.vanished.push(Vanished { kind: resource.kind(), label, key: resource.key() });
    }
    let found = residue.found.into_iter().map(|(resource, by)| Found::new(resource, by, after, &attributor)).collect();
    finish(&mut report, found, rules, false);
    gauges(before, after, &mut report);
    Ok(report)
}

fn judge(baseline: &Snapshot, options: &Options, asked: KindSet, live: &Live<'_>) -> Result<Report> {
    let mut world = LiveWorld { baseline, options, asked, live, began: Instant::now(), last: None, looks_ms: 0.0 };
    let settled = settle(&options.policy, &mut world)?;
    let Some(last) = world.last.take() else {
        return Err(crate::Error::usage("settling made no look"));
    };
    let own = options.observe.include_self.then(std::process::id);
    let attributor = Attributor::new(baseline, &last.look, live, own);
    let mut report = Report::empty(last.look.boot_id.clone(), coverage(baseline, &last.look, asked, &attributor));
    report.unreadable.clone_from(&last.look.unreadable);
    report.noise = last.noise;
    report.timing_ms.insert("baseline".to_owned(), baseline.took_ns as f64 / 1e6);
    report.timing_ms.insert("settle".to_owned(), ms(settled.took));
    report.timing_ms.insert("looking".to_owned(), world.looks_ms);
    let Settled { residue, transient, looks, took, extended } = settled;
    report.settle = Settling { looks, ms: ms(took), extended };
    for (found, after) in transient {
        report.transient.push(Transient {
            kind: found.resource.kind(),
            label: found.label,
            key: found.resource.key(),
            gone_after_ms: ms(after),
        });
    }
    finish(&mut report, residue.into_values().collect(), &options.rules, options.attributed_only);
    gauges(baseline, &last.look, &mut report);
    Ok(report)
}

/// Sorts what was found into leaks and what rules explain, and gives the verdict.
fn finish(report: &mut Report, found: Vec<Found>, rules: &Rules, attributed_only: bool) {
    let mut used = BTreeSet::new();
    for Found { resource, by, class, label, facts } in found {
        let (kind, key) = (resource.kind(), resource.key());
        let fields = facts.get("resource").cloned().unwrap_or(Value::Null);
        let detail = |name: &str| facts.get(name).or_else(|| fields.get(name)).and_then(|value| plain(name, value));
        if let Some(n) = rules.explains(kind, detail) {
            used.insert(n);
            report.allowed.push(Allowed { kind, label, key, reason: rules.rules[n].reason.clone() });
            continue;
        }
        let leak = Leak { kind, class, label, attribution: by, key, evidence: facts };
        if attributed_only && by == Attribution::None {
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

/// A detail as rules match it: as it is shown. What is not known matches nothing.
fn plain(name: &str, value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(s) => Some(s.clone()),
        Value::Number(n) if name == "mode" => n.as_u64().map(|mode| format!("{mode:04o}")),
        other => Some(other.to_string()),
    }
}

fn gauges(before: &Snapshot, after: &Snapshot, report: &mut Report) {
    for (name, now) in &after.gauges {
        report.gauges.insert(name.clone(), [before.gauges.get(name).copied().unwrap_or(0), *now]);
    }
}

/// The worse of both observations. Processes that refused to be read, were there before and are not the run's, are listed and
/// lower nothing.
fn coverage<P: Provenance>(
    before: &Snapshot,
    after: &Snapshot,
    asked: KindSet,
    attributor: &Attributor<'_, P>,
) -> CoverageMap {
    let mut map = before.coverage.clone();
    map.merge(&after.coverage);
    map.0.retain(|kind, _| asked.contains(*kind));
    let matters = |u: &&Unreadable| {
        let before = before.unreadable.iter().any(|old| (old.pid, old.start) == (u.pid, u.start));
        let owner = after.process(u.pid).map(|p| attributor.owner(&Resource::Process(p.clone())));
        match owner {
            Some(Owner::Stranger) => false,
            Some(Owner::Run(Attribution::Scope)) | None => !before,
            Some(Owner::Run(_) | Owner::Unknown) => true,
        }
    };
    // What the key quota counts beyond the list is a gap only when it grew.
    let hidden = |s: &Snapshot| s.gauges.get("hidden_keys").copied().unwrap_or(0);
    if hidden(after) > hidden(before) && map.0.contains_key(&Kind::Key) {
        let more = hidden(after) - hidden(before);
        map.lower(Kind::Key, Level::Partial, format!("{more} new keys can be viewed by their possessors alone"));
    }
    let gaps: Vec<&Unreadable> = after.unreadable.iter().filter(matters).collect();
    observe::lower_for_unreadable(&gaps, &mut map);
    map
}

/// Residue with all that a report needs of it, looked up while it is there.
#[derive(Clone)]
struct Found {
    resource: Resource,
    by: Attribution,
    class: Class,
    label: String,
    facts: serde_json::Map<String, Value>,
}

impl Found {
    fn new<P: Provenance>(
        resource: Resource,
        by: Attribution,
        look: &Snapshot,
        attributor: &Attributor<'_, P>,
    ) -> Self {
        let populated = |c: &crate::resource::Cgroup| detail::cgroup_processes(c).is_some_and(|p| !p.is_empty());
        let class = classify(&resource, look, |ns| attributor.fresh_ns(ns), populated);
        let evidence = detail::evidence(&resource, look);
        Found { resource, by, class, label: evidence.label, facts: evidence.facts }
    }
}

struct Residue {
    found: Vec<(Resource, Attribution)>,
    noise: u64,
}

/// What is not a stranger's, without what only repeats another leak.
fn residue<P: Provenance>(appeared: Vec<Resource>, attributor: &Attributor<'_, P>) -> Residue {
    let mut out = Residue { found: Vec::new(), noise: 0 };
    for resource in appeared {
        match attributor.owner(&resource) {
            Owner::Run(by) => out.found.push((resource, by)),
            Owner::Unknown => out.found.push((resource, Attribution::None)),
            Owner::Stranger if attributor.tells_noise() => out.noise += 1,
            // Between two snapshots a process that was there before may have leaked as well as a new one.
            Owner::Stranger => out.found.push((resource, Attribution::None)),
        }
    }
    fold(&mut out.found, attributor);
    out
}

/// A leaked process' descriptors, and the mounts of a namespace that a leaked process is in, go with it: one leak, one line.
fn fold<P: Provenance>(found: &mut Vec<(Resource, Attribution)>, attributor: &Attributor<'_, P>) {
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
    found.retain(|(r, _)| match r {
        Resource::Fd(fd) => !leaked.contains(&(fd.pid, fd.start)),
        Resource::Mount(m) => !inhabited.contains(&m.ns) && !attributor.is_copy(m),
        _ => true,
    });
}

struct LastLook {
    look: Snapshot,
    noise: u64,
}

struct LiveWorld<'a> {
    baseline: &'a Snapshot,
    options: &'a Options,
    asked: KindSet,
    live: &'a Live<'a>,
    began: Instant,
    last: Option<LastLook>,
    looks_ms: f64,
}

impl World<Found> for LiveWorld<'_> {
    fn look(&mut self) -> Result<Look<Found>> {
        let look = observe::snapshot(&self.options.observe)?;
        if let Some(watch) = self.live.watch {
            // What the snapshot saw happened before now.
            watch.sync();
        }
        self.looks_ms += look.took_ns as f64 / 1e6;
        let mut appeared = diff::diff(self.baseline, &look)?.appeared;
        appeared.retain(|r| self.asked.contains(r.kind()));
        let own = self.options.observe.include_self.then(std::process::id);
        let attributor = Attributor::new(self.baseline, &look, self.live, own);
        let residue = residue(appeared, &attributor);
        let (run_lives, running) = attributor.alive();
        let found = residue
            .found
            .into_iter()
            .map(|(resource, by)| (resource.key(), Found::new(resource, by, &look, &attributor)))
            .collect();
        self.last = Some(LastLook { look, noise: residue.noise });
        Ok(Look { residue: found, run_lives, running })
    }

    fn wait(&mut self, residue: &BTreeMap<String, Found>, pause: Duration) {
        let zombie = |f: &Found| matches!(&f.resource, Resource::Process(p) if p.state == 'Z');
        // Where only a reaper is waited for, the wait itself sees when it has come.
        let pause = if residue.values().all(zombie) { pause.max(self.options.policy.at_least) } else { pause };
        observe::wait_for_change(residue.values().map(|f| &f.resource), pause);
    }

    fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    fn pressure(&self) -> u32 {
        observe::pressure()
    }
}

/// What is known of the run: by the watch, by the token, by `/proc`.
struct Live<'a> {
    watch: Option<&'a Watch>,
    token: Option<&'a str>,
}

impl Provenance for Live<'_> {
    fn watched(&self) -> bool {
        self.watch.is_some()
    }

    fn process(&self, process: &Process) -> Membership {
        if process.pid == std::process::id() {
            return Membership::Run;
        }
        self.watch.map_or(Membership::Unknown, |w| w.descends(process.pid, process.start))
    }

    fn token(&self, pid: u32) -> bool {
        let Some(token) = self.token else { return false };
        let entry = format!("{TOKEN_NAME}={token}");
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|b| *b == 0).any(|e| e == entry.as_bytes())
    }

    fn ever(&self, pid: u32) -> Membership {
        self.watch.map_or(Membership::Unknown, |w| w.was_run_pid(pid))
    }

    fn creator(&self, path: &[u8]) -> Membership {
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        self.watch.and_then(|w| w.creator(path)).map_or(Membership::Unknown, |m| m.membership)
    }

    fn mount(&self, id: u64) -> Membership {
        self.watch.and_then(|w| w.mount_creator(id)).map_or(Membership::Unknown, |m| m.membership)
    }

    fn cgroups(&self, pid: u32) -> Vec<(String, String)> {
        observe::cgroups_of(pid)
    }

    fn knows_the_run(&self) -> bool {
        self.watch.is_some()
    }
}

pub(crate) fn random_token() -> String {
    let mut bytes = [0u8; 16];
    // The kernel's pool is ready long before any program of ours runs; a short answer only shortens the token.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK);
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
