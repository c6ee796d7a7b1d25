//! Waiting for asynchronous teardown: on events and attempts, within bounds. The one wait of the whole oracle.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::error::Result;

/// How long to wait.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// At least so many looks, unless nothing is left before.
    pub looks: u32,
    /// And at least so long, since the run's end.
    pub at_least: Duration,
    /// No longer, even while survivors still run, once there were so many looks.
    pub at_most: Duration,
    /// The first pause; each is twice the one before …
    pub first_pause: Duration,
    /// … up to this.
    pub longest_pause: Duration,
}

impl Policy {
    /// The policy for a given least time: at least six looks, at most eight times as long. Zero makes one look, which cannot tell
    /// a leak from what is about to go.
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

/// What one look saw.
#[derive(Clone, Debug, Default)]
pub struct Look<T> {
    /// Residue by key.
    pub residue: BTreeMap<String, T>,
    /// Whether a process of the run lives: then new residue may still be the run's.
    pub run_lives: bool,
    /// Whether such a process is running, and so may be about to end or to clean up, or is a zombie that init has yet to reap.
    pub running: bool,
}

/// The world that settles.
pub trait World<T> {
    /// Looks.
    ///
    /// # Errors
    /// What a snapshot raises.
    fn look(&mut self) -> Result<Look<T>>;
    /// Returns when something happened to the residue, or after `pause`.
    fn wait(&mut self, residue: &BTreeMap<String, T>, pause: Duration);
    /// Time since the run's end.
    fn elapsed(&self) -> Duration;
    /// How much longer to wait on a busy machine: 1 when idle.
    fn pressure(&self) -> u32;
}

/// How it ended.
#[derive(Clone, Debug)]
pub struct Settled<T> {
    /// What every look has seen.
    pub residue: BTreeMap<String, T>,
    /// What went away, with the time of the first look that missed it.
    pub transient: Vec<(T, Duration)>,
    /// Looks made.
    pub looks: u32,
    /// Time from the run's end to the last look.
    pub took: Duration,
    /// Whether survivors or pressure kept it waiting longer than the least time.
    pub extended: bool,
    /// Whether a process of the run lived at the last look, be it one that no other look saw.
    pub lives: bool,
}

/// Looks until nothing is left, or until what is left stays.
///
/// # Errors
/// What a look raises: a crashed check is never a pass.
pub fn settle<T>(policy: &Policy, world: &mut impl World<T>) -> Result<Settled<T>> {
    let first = world.look()?;
    let mut out = Settled {
        residue: first.residue,
        transient: Vec::new(),
        looks: 1,
        took: world.elapsed(),
        extended: false,
        lives: first.run_lives,
    };
    let (mut lives, mut running) = (first.run_lives, first.running);
    let at_least = policy.at_least.saturating_mul(world.pressure().max(1));
    let mut pause = policy.first_pause;
    let mut young = false;
    // A survivor that is no residue itself, because processes were not asked for, may still leave some.
    while !out.residue.is_empty() || lives {
        // Where one look outlasts every bound, as on a starved machine, their number still holds: one look alone cannot
        // tell a leak from what was seen in passing.
        let looked = out.looks >= policy.looks;
        let enough = looked && out.took >= policy.at_least;
        let done = enough && out.took >= at_least && !running || looked && out.took >= policy.at_most;
        // What only the last look has seen may be on its way out: one more look confirms it, and adds nothing.
        if done && !young {
            break;
        }
        out.extended |= enough;
        world.wait(&out.residue, pause.min(policy.at_most.saturating_sub(out.took)));
        pause = (pause * 2).min(policy.longest_pause);
        let look = world.look()?;
        out.looks += 1;
        out.took = world.elapsed();
        let (kept, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut out.residue).into_iter().partition(|(key, _)| look.residue.contains_key(key));
        out.transient.extend(gone.into_values().map(|t| (t, out.took)));
        young = false;
        for (key, seen) in look.residue {
            let known = kept.contains_key(&key);
            // What first appears while nothing of the run lives is not the run's.
            if known || lives && !done {
                young |= !known;
                out.residue.insert(key, seen);
            }
        }
        (lives, running) = (look.run_lives, look.running);
    }
    out.lives = lives;
    Ok(out)
}
