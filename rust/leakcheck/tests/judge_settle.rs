//! Settling, in a world that is a script.

use std::collections::BTreeMap;
use std::time::Duration;

use leakcheck::Error;
use leakcheck::judge::settle::{Observation, Policy, Settled, World, settle};

/// One look: residue, whether the run lives, whether it runs. The last one repeats.
type Scene = (&'static [&'static str], bool, bool);

struct Script {
    scenes: Vec<Scene>,
    looks: usize,
    fails_at: Option<usize>,
    now: Duration,
    pauses: Vec<Duration>,
    pressure: u32,
    look_takes: Duration,
    /// How many looks see something unclear that is no residue.
    unclear: usize,
}

fn world(scenes: &[Scene]) -> Script {
    Script {
        scenes: scenes.to_vec(),
        looks: 0,
        fails_at: None,
        now: Duration::ZERO,
        pauses: Vec::new(),
        pressure: 1,
        look_takes: Duration::ZERO,
        unclear: 0,
    }
}

impl World<&'static str> for Script {
    fn observe(&mut self) -> leakcheck::Result<Observation<&'static str>> {
        if self.fails_at == Some(self.looks) {
            return Err(Error::Usage("the look failed".to_owned()));
        }
        let (residue, run_lives, running) = self.scenes[self.looks.min(self.scenes.len() - 1)];
        self.looks += 1;
        self.now += self.look_takes;
        let residue = residue.iter().map(|r| ((*r).to_owned(), *r)).collect();
        Ok(Observation { residue, run_lives, running, unclear: self.looks <= self.unclear })
    }

    fn wait(&mut self, _: &BTreeMap<String, &'static str>, pause: Duration) {
        self.pauses.push(pause);
        self.now += pause;
    }

    fn elapsed(&self) -> Duration {
        self.now
    }

    fn pressure(&self) -> u32 {
        self.pressure
    }

    fn is_allowed(&self, residue: &&'static str) -> bool {
        residue.starts_with("allowed")
    }
}

const MS: Duration = Duration::from_millis(1);

fn run(world: &mut Script) -> Settled<&'static str> {
    settle(&Policy::new(500 * MS), world).unwrap()
}

fn left(settled: &Settled<&'static str>) -> Vec<&'static str> {
    settled.residue.values().copied().collect()
}

#[test]
fn something_unclear_is_waited_for_like_residue() {
    let mut twice = Script { unclear: 2, ..world(&[(&[], false, false)]) };
    let settled = run(&mut twice);
    assert_eq!((settled.looks, settled.is_quiet), (3, true));
    let mut always = Script { unclear: usize::MAX, ..world(&[(&[], false, false)]) };
    let settled = run(&mut always);
    assert!(settled.looks >= 6 && settled.took >= 500 * MS && !settled.is_quiet);
}

#[test]
fn nothing_left_takes_one_look_and_no_wait() {
    let mut world = world(&[(&[], false, false)]);
    let settled = run(&mut world);
    assert_eq!((settled.looks, settled.took, world.pauses.len()), (1, Duration::ZERO, 0));
    assert!(!settled.extended && settled.residue.is_empty() && settled.transient.is_empty());
}

#[test]
fn what_a_rule_allows_is_not_waited_for_unless_something_else_is() {
    let mut only_allowed = world(&[(&["allowed"], false, false)]);
    let settled = run(&mut only_allowed);
    assert_eq!((left(&settled), settled.looks, settled.is_quiet), (vec!["allowed"], 1, true));
    let settled = run(&mut world(&[(&["allowed", "a"], false, false), (&["allowed"], false, false)]));
    assert_eq!((left(&settled), settled.looks, settled.is_quiet), (vec!["allowed"], 2, true));
    // Its process may leave more.
    let settled = run(&mut world(&[(&["allowed"], true, false), (&["allowed", "a"], true, false)]));
    assert!(left(&settled) == ["a", "allowed"] && !settled.is_quiet, "{settled:?}");
    let at_once = settle(&Policy::new(Duration::ZERO), &mut world(&[(&["a"], false, false)])).unwrap();
    assert!(at_once.looks == 1 && !at_once.is_quiet, "{at_once:?}");
}

#[test]
fn what_goes_away_is_transient_with_the_time_of_the_look_that_missed_it() {
    let mut world = world(&[(&["a", "b"], false, false), (&["b"], false, false), (&[], false, false)]);
    let settled = run(&mut world);
    assert_eq!(settled.transient, [("a", MS), ("b", 3 * MS)]);
    assert_eq!((settled.looks, settled.took), (3, 3 * MS));
}

#[test]
fn residue_stays_through_at_least_so_many_looks_and_so_much_time() {
    let mut waits = world(&[(&["a"], false, false)]);
    let settled = run(&mut waits);
    assert_eq!(left(&settled), ["a"]);
    assert!(settled.looks >= 6 && settled.took >= 500 * MS && settled.took < 600 * MS, "{settled:?}");
    assert!(!settled.extended, "the least time is no extension");
    let slow = Policy { looks: 6, at_least: MS, at_most: 5000 * MS, first_pause: MS, longest_pause: MS };
    let settled = settle(&slow, &mut world(&[(&["a"], false, false)])).unwrap();
    assert_eq!((settled.looks, settled.took), (6, 5 * MS), "looks count even when the time is over");
}

#[test]
fn where_one_look_outlasts_every_bound_the_number_of_looks_still_holds() {
    let seen_in_passing = [(&["noise"][..], false, false), (&[][..], false, false)];
    let mut starved = Script { look_takes: 9000 * MS, ..world(&seen_in_passing) };
    let settled = run(&mut starved);
    assert_eq!((left(&settled), settled.looks, settled.transient.len()), (vec![], 2, 1));
    let mut starved = Script { look_takes: 9000 * MS, ..world(&[(&["p"], true, true)]) };
    let settled = run(&mut starved);
    assert_eq!((left(&settled), settled.looks), (vec!["p"], 6), "and it ends");
}

#[test]
fn pauses_double_up_to_the_longest() {
    let mut world = world(&[(&["a"], false, false)]);
    run(&mut world);
    let ms: Vec<_> = world.pauses.iter().map(Duration::as_millis).collect();
    assert_eq!(ms[..8], [1, 2, 4, 8, 16, 32, 64, 100]);
}

#[test]
fn what_first_appears_while_nothing_of_the_run_lives_is_not_the_runs() {
    let settled = run(&mut world(&[(&["a"], false, false), (&["a", "noise"], false, false)]));
    assert_eq!(left(&settled), ["a"]);
    assert!(settled.transient.is_empty());
}

#[test]
fn what_appears_while_a_process_of_the_run_lives_is_the_runs() {
    let settled = run(&mut world(&[(&["p"], true, false), (&["p", "late"], true, false)]));
    assert_eq!(left(&settled), ["late", "p"]);
    let last_breath = [(&["p"][..], true, false), (&["made at the end"][..], false, false)];
    let settled = run(&mut world(&last_breath));
    assert_eq!(left(&settled), ["made at the end"]);
    assert_eq!(settled.transient.len(), 1);
}

#[test]
fn a_survivor_that_is_no_residue_itself_may_still_leave_some() {
    let settled = run(&mut world(&[(&[], true, false), (&["file"], true, false)]));
    assert_eq!(left(&settled), ["file"]);
    let settled = run(&mut world(&[(&[], true, false), (&["file"], false, false), (&[], false, false)]));
    assert_eq!((left(&settled), settled.looks), (vec![], 3));
}

#[test]
fn it_waits_longer_while_a_survivor_runs_but_never_longer_than_the_most() {
    let mut world = world(&[(&["p"], true, true)]);
    let settled = run(&mut world);
    assert!(settled.extended);
    assert_eq!(settled.took, 4000 * MS, "the last pause is cut to the bound");
    assert_eq!(left(&settled), ["p"]);
}

#[test]
fn a_survivor_that_ends_in_the_extra_time_is_transient() {
    let mut scenes: Vec<Scene> = vec![(&["p"], true, true); 15];
    scenes.push((&[], false, false));
    let settled = run(&mut world(&scenes));
    assert!(settled.extended && settled.took > 500 * MS, "{settled:?}");
    assert_eq!(settled.transient.len(), 1);
}

#[test]
fn pressure_makes_the_least_time_longer() {
    let mut world = world(&[(&["a"], false, false)]);
    world.pressure = 2;
    let settled = run(&mut world);
    assert!(settled.took >= 1000 * MS && settled.took < 1200 * MS && settled.extended, "{settled:?}");
}

#[test]
fn a_look_that_fails_is_an_error_and_never_a_pass() {
    for at in [0, 2] {
        let mut world = world(&[(&["a"], false, false)]);
        world.fails_at = Some(at);
        let error = settle(&Policy::default(), &mut world).expect_err("the error of the look");
        assert_eq!(error.to_string(), "the look failed");
    }
}

#[test]
fn no_time_at_all_is_one_look_and_an_endless_time_does_not_overflow() {
    let settled = settle(&Policy::new(Duration::ZERO), &mut world(&[(&["a"], false, false)])).unwrap();
    assert_eq!((settled.looks, left(&settled)), (1, vec!["a"]));
    let mut ends = world(&[(&["a"], false, false), (&[], false, false)]);
    ends.pressure = 2;
    assert_eq!(settle(&Policy::new(Duration::MAX), &mut ends).unwrap().transient.len(), 1);
}

#[test]
fn what_only_the_last_look_saw_is_looked_at_once_more() {
    // A survivor that blocks keeps the run alive; the sixth look also meets a file that somebody is just about to remove.
    let survivor: Scene = (&["p"], true, false);
    let short = Policy { looks: 6, ..Policy::new(10 * MS) };
    let passing: [Scene; 7] = [survivor, survivor, survivor, survivor, survivor, (&["f", "p"], true, false), survivor];
    let settled = settle(&short, &mut world(&passing)).unwrap();
    assert_eq!((left(&settled), settled.transient.len(), settled.looks), (vec!["p"], 1, 7));
    // One that stays is the run's, and the extra look adds nothing of its own.
    let staying: [Scene; 7] =
        [survivor, survivor, survivor, survivor, survivor, (&["f", "p"], true, false), (&["f", "g", "p"], true, false)];
    let settled = settle(&short, &mut world(&staying)).unwrap();
    assert_eq!((left(&settled), settled.looks), (vec!["f", "p"], 7));
}
