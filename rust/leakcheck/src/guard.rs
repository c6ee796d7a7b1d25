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

mod adrift;
mod begun;
mod coverage;
mod kept;
mod live;
mod options;
mod others;
mod residue;
mod world;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::judge::allow::Rules;
use crate::judge::attribute::{Attribution, Attributor, Provenance};
use crate::judge::class::Class;
use crate::judge::diff;
use crate::judge::report::{Command, Report, Settling, Transient, Vanished};
use crate::judge::settle::{Policy, Settled, settle};
use crate::judge::verdict::Verdict;
use crate::kind::{Kind, KindSet};
use crate::observe::proc_root::ProcRoot;
use crate::observe::{self, Calls, Mappings, ObservedArena, OpenSettings, detail};
use crate::parse::nslink::NsType;
use crate::resource::{Fd, NsHolder, Process, Resource};
use crate::scope::Scope;
use crate::snapshot::{CoverageMap, Level, Snapshot};
pub use crate::token::TOKEN_NAME;
use crate::token::random_token;
use crate::watch::{self, Watch};
use adrift::Adrift;
use begun::Begun;
use coverage::{Reach, coverage, new_hidden_keys, note_hidden_keys, only_comparable, unlisted_queues};
pub use kept::KeptWatch;
use kept::Lent;
use live::{Live, Run};
pub use options::{Options, Waiting};
use residue::{Remnant, finish, gauges, replacing, residue};
use world::LiveWorld;

/// A guarded run. The run is every process that this process starts after [`Guard::begin`], their descendants, and
/// every process with the [token](Guard::token) in its environment; with `include_self` also what this process itself
/// opens.
pub struct Guard {
    options: Options,
    /// The kinds that are judged; more kinds may be observed.
    asked: KindSet,
    /// None in an arena, where everything is the run's.
    watch: Option<Watch>,
    /// Whether the watch is left for the next guard.
    lent: Option<Lent>,
    /// Follows the first process of a `tree:` scope: its descendants may leave the tree, and it may exit.
    tree: Option<Watch>,
    token: String,
    /// On the host, where the kernel lets us record them.
    calls: Option<Calls>,
    baseline: Snapshot,
    reach: Reach,
    baseline_ns: i64,
    began: Instant,
    report: Option<Report>,
}

impl Guard {
    /// Takes the baseline and starts watching.
    ///
    /// # Errors
    /// What [`observe::snapshot`] raises.
    pub fn begin(mut options: Options) -> Result<Self> {
        let mut asked = options.observe.effective_kinds()?;
        if options.observe.kinds.is_none() && options.observe.arena.is_some() {
            asked = asked.iter().chain([Kind::Sysctl]).collect();
        }
        // On the host, the descriptors of this process are looked at.
        options.observe.open_settings = options.observe.arena.is_some().then(OpenSettings::take);
        let kinds = with_helpers(asked);
        options.observe.kinds = Some(kinds);
        // All lookups besides the looks go through one procfs.
        let _proc = ProcRoot::renew()?;
        let host = options.observe.scope == Scope::Host && options.observe.arena.is_none();
        if host {
            // The same for every look, whatever the run mounts.
            options.observe.roots = Some(options.observe.effective_roots());
            // On a host, what is new in a process of the baseline is not the run's, except in this one: see `Attributor`.
            options.observe.mappings = Mappings::Own;
        }
        let tree = match options.observe.scope {
            Scope::Tree(root) => Some(Watch::start(&watch::Options { root, ..watch::Options::default() })),
            Scope::Host | Scope::Cgroup(_) | Scope::Arena => None,
        };
        options.observe.hidden_fds.extend(tree.iter().flat_map(Watch::own_fds));
        let recorded = host && asked.any(&[Kind::Bpf, Kind::Key, Kind::Loop]);
        let calls = if recorded { Calls::of_host().ok() } else { None };
        let mounts = kinds.any(&[Kind::Mount, Kind::Namespace, Kind::Net]) && host;
        let Begun { watch, lent, baseline, baseline_ns } = Begun::of(&mut options, kinds, mounts)?;
        if let Some(tree) = &tree {
            tree.adopt(&baseline.processes.iter().map(|p| p.pid).collect::<Vec<_>>());
        }
        if host {
            let known = baseline.processes.iter().map(|p| (p.pid, p.start)).collect();
            options.observe.mappings = Mappings::New(Arc::new(known));
        }
        options.observe.submounts = Some(baseline.submounts.clone());
        // Mounts that others add between the baseline and this point do no harm. Without a list, all mounts that
        // respond are entered.
        let old = observe::mount_numbers(options.observe.arena.as_deref().map(|arena| &arena.view)).ok().map(Arc::new);
        if let (Some(watch), Some(old)) = (&watch, &old) {
            watch.limit_to(Arc::clone(old));
        }
        options.observe.old_mounts = old;
        let seen = baseline.coverage.0.get(&Kind::Sysctl).is_some_and(|c| c.level == Level::Full);
        options.observe.old_settings = seen.then(|| Arc::new(baseline.sysctls.clone()));
        if let Some(watch) = watch.as_ref().filter(|_| mounts) {
            watch.watch_namespaces(&mount_namespaces(&baseline));
        }
        options.observe.remembered.begin_run();
        let reach = match &options.observe.arena {
            None => Reach::of_own_runs(&baseline),
            arena => Reach::of_arena(arena.as_deref()),
        };
        options.observe.hidden_fds.extend(reach.own_fd());
        let token = random_token();
        let (began, report) = (Instant::now(), None);
        Ok(Guard { options, asked, watch, lent, tree, token, calls, baseline, baseline_ns, reach, began, report })
    }

    /// Name and value of the environment variable that the run's processes should have.
    pub fn token(&self) -> (&'static str, &str) {
        (TOKEN_NAME, &self.token)
    }

    /// Adds rules for residue that turns out to be acceptable during the run. Call it before [`Guard::end`].
    pub fn allow(&mut self, rules: Rules) {
        self.options.rules.rules.extend(rules.rules);
    }

    /// Takes descriptors of this process, with the locks on their files, out of the baseline. They were closed during
    /// the run, so what has these numbers at its end is new. Call it before [`Guard::end`].
    pub fn forget(&mut self, descriptors: &[u32]) {
        let (own, baseline) = (std::process::id(), &mut self.baseline);
        let is_closed = |fd: &Fd| fd.pid == own && descriptors.contains(&fd.fd);
        let closed: HashSet<_> = baseline.fds.extract_if(.., |fd| is_closed(fd)).map(|fd| (fd.dev, fd.ino)).collect();
        let is_own = |pid: i64| pid == -1 || pid == i64::from(own);
        baseline.locks.retain(|lock| !is_own(lock.pid) || !closed.contains(&(lock.dev, lock.ino)));
    }

    /// The observation before the run. On a host, it contains the mappings of this process only.
    pub fn baseline(&self) -> &Snapshot {
        &self.baseline
    }

    /// Ends the run: waits for teardown and judges what remains.
    ///
    /// # Errors
    /// What [`observe::snapshot`] raises. A failed check is never a pass.
    pub fn end(&mut self, command: Option<Command>) -> Result<Report> {
        let run_ms = ms(self.began.elapsed());
        let report = self.judge(&self.options.policy)?.0;
        Ok(self.ended(report, run_ms, command))
    }

    /// Ends the run if one look finds nothing to wait for. None: call [`Guard::end`], which settles.
    ///
    /// # Errors
    /// As [`Guard::end`].
    pub fn end_at_once(&mut self) -> Result<Option<Report>> {
        let run_ms = ms(self.began.elapsed());
        let (report, is_quiet) = self.judge(&Policy::new(Duration::ZERO))?;
        Ok(is_quiet.then(|| self.ended(report, run_ms, None)))
    }

    fn ended(&mut self, mut report: Report, run_ms: f64, command: Option<Command>) -> Report {
        report.command = command;
        report.timing_ms.insert("run".to_owned(), run_ms);
        self.report = Some(report.clone());
        report
    }

    /// Looks again after the target's own recovery. What the recovery removed gets the class *reclaimable* and no
    /// longer counts for the verdict. What still exists stays as it was. What the recovery itself left is added.
    ///
    /// # Errors
    /// As [`Guard::end`].
    pub fn recovered(&mut self) -> Result<Report> {
        let Some(mut report) = self.report.take() else { return self.end(None) };
        let mut after = self.judge(&self.options.policy)?.0;
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

    /// The report, and whether a longer policy would have given the same.
    fn judge(&self, policy: &Policy) -> Result<(Report, bool)> {
        let arena = self.options.observe.arena.as_deref();
        let live = Live {
            watch: self.watch.as_ref(),
            tree: self.tree.as_ref(),
            token: Some(&self.token),
            calls: self.calls.as_ref(),
            arena,
        };
        let run = Run { baseline: &self.baseline, options: &self.options, asked: self.asked, live: &live };
        let (mut report, is_quiet) = judge(run, &self.baseline, policy, &self.reach)?;
        report.baseline_ns = self.baseline_ns;
        Ok((report, is_quiet))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let (Some(lent), Some(watch)) = (self.lent.take(), self.watch.take()) {
            lent.leave(watch);
        }
    }
}

/// The mount namespaces of other processes, each with a path that opens it. Mounts of the run may propagate into them
/// and stay there.
fn mount_namespaces(baseline: &Snapshot) -> Vec<(u64, PathBuf)> {
    let path = |holder: &NsHolder| match holder {
        NsHolder::Process(pid, _) => Some(format!("/proc/{pid}/ns/mnt").into()),
        NsHolder::Fd(pid, _, fd) => Some(format!("/proc/{pid}/fd/{fd}").into()),
        NsHolder::Bind(_) => None,
    };
    let own = baseline.own_ns.get(&NsType::Mnt);
    let others = baseline.namespaces.iter().filter(|n| n.ns_type == NsType::Mnt && own != Some(&n.ino));
    others.flat_map(|n| n.holders.iter().filter_map(path).map(|path| (n.ino, path))).collect()
}

/// The kinds to observe in order to judge `asked`. Processes tell whose residue is, and whether more may come.
/// Descriptors tell which process holds a lock, a socket, a mount, a namespace or a BPF object. Namespaces tell whose
/// the objects inside are.
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

/// Waits for teardown since `baseline` and judges what remains, without knowing which process made it: everything that
/// appeared counts. `first` is the first of several baselines: a resource that replaces one of that baseline is marked.
///
/// # Errors
/// What [`observe::snapshot`] and [`diff::diff`] raise.
pub fn verify_none(baseline: &Snapshot, first: &Snapshot, options: &Options) -> Result<Report> {
    let asked = options.observe.effective_kinds()?.and(baseline.kinds);
    let arena = options.observe.arena.as_deref();
    let live = Live { watch: None, tree: None, token: None, calls: None, arena };
    let run = Run { baseline, options, asked, live: &live };
    Ok(judge(run, first, &options.policy, &Reach::of_arena(arena))?.0)
}

/// The coverage of a guard with `look` as its baseline and a run that leaves nothing.
pub(crate) fn coverage_of(observation: &Snapshot, watch: &Watch) -> CoverageMap {
    let watched = Live { watch: Some(watch), tree: None, token: None, calls: None, arena: None };
    let attributor = Attributor::new(observation, observation, &watched, None);
    coverage(observation, observation, observation.kinds, &attributor, &Reach::of_own_runs(observation))
}

/// Judges two existing snapshots, of `arena` if they show an arena that still exists. It does not wait, and knows
/// nothing of the time between them.
///
/// # Errors
/// [`Error::Usage`](crate::Error::Usage) when they cannot be compared.
pub fn compare(before: &Snapshot, after: &Snapshot, rules: &Rules, arena: Option<&ObservedArena>) -> Result<Report> {
    let mut all = diff::diff(before, after)?.with_settings_as_changes(before);
    // Each snapshot contains the process that took it.
    let observer = |r: &Resource| match r {
        Resource::Process(p) => [before.observer, after.observer].contains(&Some((p.pid, p.start))),
        _ => false,
    };
    all.appeared.retain(|r| !observer(r));
    all.vanished.retain(|r| !observer(r));
    let live = Live { watch: None, tree: None, token: None, calls: None, arena };
    let attributor = Attributor::new(before, after, &live, None);
    let asked = before.kinds.and(after.kinds);
    only_comparable(before, after, &mut all.appeared, |_| false);
    all.appeared.extend(unlisted_queues(before, after).filter(|_| asked.contains(Kind::Ipc)));
    let residue = residue(all.appeared, &attributor);
    let mut coverage = coverage(before, after, asked, &attributor, &Reach::default());
    note_hidden_keys(new_hidden_keys(before, after), live.makes_keys(), &mut coverage);
    for kind in Kind::ALL.into_iter().filter(|k| before.kinds.contains(*k) != after.kinds.contains(*k)) {
        coverage.lower(kind, Level::None, "only one of the two snapshots covers it");
    }
    let mut report = Report::empty(after.boot_id.clone(), coverage);
    report.scope.clone_from(&after.scope);
    report.baseline_ns = before.taken_ns;
    report.unreadable.clone_from(&after.unreadable);
    for resource in all.vanished {
        let label = detail::evidence(&resource, before, live.view()).label;
        report.vanished.push(Vanished { kind: resource.kind(), label, key: resource.key() });
    }
    let found = residue
        .found
        .into_iter()
        .map(|(resource, by)| Remnant::new(resource, by, after, &attributor, live.view()))
        .collect();
    finish(&mut report, replacing(found, before, after), rules, false);
    gauges(before, after, &mut report);
    Ok(report)
}

fn judge(run: Run<'_>, first: &Snapshot, policy: &Policy, reach: &Reach) -> Result<(Report, bool)> {
    let Run { baseline, options, asked, live } = run;
    let mut world = LiveWorld {
        run,
        reach,
        began: Instant::now(),
        last: None,
        every: CoverageMap::default(),
        looks_ms: 0.0,
        adrift: Adrift::default(),
        hidden_keys: i64::MAX,
        grace_periods: 0,
    };
    // All lookups besides the looks go through one procfs.
    let _proc = ProcRoot::renew()?;
    let mut settled = settle(policy, &mut world)?;
    let Some(last) = world.last.take() else {
        return Err(crate::error::Error::usage("settling took no snapshot"));
    };
    let adrift = std::mem::take(&mut world.adrift);
    let passed: Vec<bool> = settled.transient.iter().map(|(found, _)| adrift.knows(&found.resource)).collect();
    let respawning = adrift.end(&world.run, &last.observation, &mut settled.residue, settled.lives)?;
    let mut coverage = last.coverage;
    // What disappeared in an incomplete look may still exist.
    let gone: KindSet = settled.transient.iter().map(|(found, _)| found.resource.kind()).collect();
    for (kind, worst) in world.every.0.into_iter().filter(|(kind, _)| gone.contains(*kind)) {
        coverage.lower(kind, worst.level, worst.reason);
    }
    note_hidden_keys(world.hidden_keys, live.makes_keys(), &mut coverage);
    note_end_of_tree(baseline, live, asked, &mut coverage);
    if let Some(why) = respawning.gap {
        coverage.lower(Kind::Process, Level::Partial, why);
    }
    if let Some(found) = respawning.leak {
        // The report of the chain includes its earlier processes.
        let mut passed = passed.into_iter();
        settled.transient.retain(|_| !passed.next().unwrap_or(false));
        settled.residue.insert(found.key.clone(), found);
    }
    let mut report = Report::empty(last.observation.boot_id.clone(), coverage);
    report.scope.clone_from(&last.observation.scope);
    report.baseline_ns = baseline.taken_ns;
    report.unreadable.clone_from(&last.observation.unreadable);
    report.noise = last.noise;
    report.others = others::who(&last.strange, baseline, &last.observation, live);
    report.timing_ms.insert("baseline".to_owned(), baseline.took_ns as f64 / 1e6);
    report.timing_ms.insert("settle".to_owned(), ms(settled.took));
    report.timing_ms.insert("looking".to_owned(), world.looks_ms);
    let Settled { residue, transient, looks, took, extended, lives: _, is_quiet } = settled;
    report.settle = Settling { looks, ms: ms(took), extended };
    // What disappeared before it could be attributed says nothing about the run.
    let (attributed, unattributed): (Vec<_>, Vec<_>) =
        transient.into_iter().partition(|(f, _)| f.by != Attribution::None);
    report.noise += unattributed.len() as u64;
    for (found, after) in attributed {
        report.transient.push(Transient {
            kind: found.resource.kind(),
            label: found.label,
            key: found.resource.key(),
            gone_after_ms: ms(after),
        });
    }
    let found = replacing(residue.into_values().collect(), first, &last.observation);
    note_closed(&found, options, live, &mut report.coverage);
    finish(&mut report, found, &options.rules, options.attributed_only);
    gauges(baseline, &last.observation, &mut report);
    Ok((report, is_quiet))
}

/// After a tree's first process has exited, its descendants can be followed only if every event is seen, and its mounts
/// only through processes in the same mount namespace.
fn note_end_of_tree(baseline: &Snapshot, live: &Live<'_>, asked: KindSet, coverage: &mut CoverageMap) {
    let Scope::Tree(root) = baseline.scope else { return };
    let same = |p: &Process| baseline.process(root).is_some_and(|old| old.start == p.start) && p.state != 'Z';
    if observe::process(root, None).is_some_and(|p| same(&p)) {
        return;
    }
    let followed = live.tree.is_some_and(|w| w.levels().descent.level == Level::Full);
    let lost: &[Kind] = if followed {
        &[Kind::Mount, Kind::Namespace]
    } else {
        &[Kind::Process, Kind::Fd, Kind::Lock, Kind::Mount, Kind::Namespace]
    };
    for kind in lost.iter().filter(|kind| asked.contains(**kind)) {
        let why = format!("process {root} exited during the run: leakcheck can no longer find through it what it left");
        coverage.lower(*kind, Level::Partial, why);
    }
}

/// If the run closed the observer's descriptors, who made something new is unknown where it is no leak unless it is the
/// run's.
fn note_closed(found: &[Remnant], options: &Options, live: &Live<'_>, coverage: &mut CoverageMap) {
    if !options.attributed_only {
        return;
    }
    let watch = live.watch.is_some_and(Watch::is_closed);
    let calls = live.calls.is_some_and(Calls::is_closed);
    let is_untold = |one: &&Remnant| match one.resource.kind() {
        Kind::Bpf | Kind::Key | Kind::Loop => watch || calls,
        _ => watch,
    };
    let unattributed = found.iter().filter(|one| one.by == Attribution::None);
    for remnant in unattributed.filter(is_untold).filter(|one| one.explained_by(&options.rules).is_none()) {
        let why = "the program closed descriptors of leakcheck, which tell who made what: something new may be its own";
        coverage.lower(remnant.resource.kind(), Level::Partial, why);
    }
}

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
