//! Waits for asynchronous teardown: by events and attempts, within bounds. The only wait of the oracle.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::error::Result;

/// How long to wait.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// At least this many looks, unless nothing remains earlier.
    pub looks: u32,
    /// And at least this long after the run's end.
    pub at_least: Duration,
    /// At most this long after that many looks, even if survivors still run.
    pub at_most: Duration,
    /// The first pause; each pause doubles …
    pub first_pause: Duration,
    /// … up to this one.
    pub longest_pause: Duration,
}

impl Policy {
    /// The policy for a given minimum time: at least six looks, at most eight times as long. Zero means one look, which
    /// cannot distinguish a leak from something that is about to disappear.
    pub fn new(at_least: Duration) -> Self {
        Policy {
            looks: if at_least.is_zero() { 1 } else { 6 },
            at_least,
            at_most: at_least.saturating_mul(8),
            first_pause: Duration::from_millis(1),
            longest_pause: Duration::from_millis(100),
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Policy::new(Duration::from_millis(500))
    }
}

/// The result of one look.
#[derive(Clone, Debug, Default)]
pub struct Observation<T> {
    /// Residue by key.
    pub residue: BTreeMap<String, T>,
    /// Whether a process of the run lives. Then new residue may still be the run's.
    pub run_lives: bool,
    /// Whether such a process is running, so that it may be about to exit or to clean up, or is a zombie that init has
    /// not reaped yet.
    pub running: bool,
    /// Whether it saw something besides residue that must not stay, such as a key that nobody can view.
    pub unclear: bool,
}

/// The system that settles.
pub trait World<T> {
    /// Takes a look.
    ///
    /// # Errors
    /// The errors of a snapshot.
    fn observe(&mut self) -> Result<Observation<T>>;
    /// Returns when the residue changes, or after `pause`.
    fn wait(&mut self, residue: &BTreeMap<String, T>, pause: Duration);
    /// Time since the run's end.
    fn elapsed(&self) -> Duration;
    /// How much longer to wait on a busy machine: 1 when idle.
    fn pressure(&self) -> u32;
    /// Whether an allow rule explains it: nothing is gained by waiting for it.
    fn is_allowed(&self, residue: &T) -> bool;
}

/// The result of settling.
#[derive(Clone, Debug)]
pub struct Settled<T> {
    /// Residue that every look saw.
    pub residue: BTreeMap<String, T>,
    /// Residue that disappeared, with the time of the first look without it.
    pub transient: Vec<(T, Duration)>,
    /// Looks made.
    pub looks: u32,
    /// Time from the run's end to the last look.
    pub took: Duration,
    /// Whether survivors or pressure extended the minimum time.
    pub extended: bool,
    /// Whether a process of the run lived at the last look, even one that no other look saw.
    pub lives: bool,
    /// Whether nothing was left to wait for: a longer policy would have given the same.
    pub is_quiet: bool,
}

/// Looks until nothing remains that no rule allows, or until what remains stays.
///
/// # Errors
/// The errors of a look: a failed check is never a pass.
pub fn settle<T>(policy: &Policy, world: &mut impl World<T>) -> Result<Settled<T>> {
    let first = world.observe()?;
    let mut out = Settled {
        residue: first.residue,
        transient: Vec::new(),
        looks: 1,
        took: world.elapsed(),
        extended: false,
        lives: first.run_lives,
        is_quiet: false,
    };
    let (mut lives, mut running, mut unclear) = (first.run_lives, first.running, first.unclear);
    let at_least = policy.at_least.saturating_mul(world.pressure().max(1));
    let mut pause = policy.first_pause;
    let mut young = false;
    // A survivor that is not residue itself, because processes were not requested, may still leave some.
    while lives || unclear || out.residue.values().any(|r| !world.is_allowed(r)) {
        // If one look takes longer than every bound, as on an overloaded machine, the number of looks still counts: a
        // single look cannot distinguish a leak from something temporary.
        let looked = out.looks >= policy.looks;
        let enough = looked && out.took >= policy.at_least;
        let done = enough && out.took >= at_least && !running || looked && out.took >= policy.at_most;
        // What only the last look saw may be about to disappear: one more look confirms it and adds nothing.
        if done && !young {
            break;
        }
        out.extended |= enough;
        world.wait(&out.residue, pause.min(policy.at_most.saturating_sub(out.took)));
        pause = (pause * 2).min(policy.longest_pause);
        let observation = world.observe()?;
        out.looks += 1;
        out.took = world.elapsed();
        let (kept, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut out.residue).into_iter().partition(|(key, _)| observation.residue.contains_key(key));
        out.transient.extend(gone.into_values().map(|t| (t, out.took)));
        young = false;
        for (key, seen) in observation.residue {
            let known = kept.contains_key(&key);
            // What first appears when no process of the run lives is not the run's.
            if known || lives && !done {
                young |= !known;
                out.residue.insert(key, seen);
            }
        }
        (lives, running, unclear) = (observation.run_lives, observation.running, observation.unclear);
    }
    out.lives = lives;
    out.is_quiet = !lives && !unclear && out.residue.values().all(|r| world.is_allowed(r));
    Ok(out)
}
