//! A supervisor that is killed at any instant leaves what recovery removes, and no payload.

mod common;

use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Place, random, root};

const KILLS: usize = 60;

/// Starts a run whose payload ends at once or never, and kills its supervisor at a random instant.
fn crash(place: &Place, number: u16, seed: &mut u64, length: Duration) {
    let program: &[&str] = if random(seed, 2) == 0 { &["--", "/bin/true"] } else { &["--", "/bin/sleep", "600"] };
    let mut child = place.run_command(number, program).spawn().unwrap();
    sleep(Duration::from_micros(random(seed, length.as_micros() as u64)));
    // Nobody has waited for it yet, so the number is still its own, dead or alive.
    child.kill().unwrap();
    child.wait().unwrap();
}

fn length_of_a_run(place: &Place) -> Duration {
    let mut lengths: Vec<Duration> = (0..5)
        .map(|_| {
            let begin = Instant::now();
            assert_eq!(place.run(1, &["--", "/bin/true"]).status(), "OK");
            begin.elapsed()
        })
        .collect();
    lengths.sort();
    lengths[2] * 5 / 4
}

#[test]
fn after_a_kill_at_any_instant_recovery_leaves_nothing_and_the_box_works() {
    if !root() {
        return;
    }
    let place = Place::new("kill");
    let (mut seed, length) = (0x5eed_0001, length_of_a_run(&place));
    for turn in 0..KILLS {
        crash(&place, 1, &mut seed, length);
        let recovered = place.refbox(&["recover", "--box", "1"]);
        assert_eq!(recovered.status.code(), Some(0), "turn {turn}: {recovered:?}");
        place.assert_nothing_left(&format!("turn {turn}"));
    }
    assert_eq!(place.run(1, &["--", "/bin/true"]).status(), "OK");
}

#[test]
fn after_a_kill_the_next_run_recovers_the_box_by_itself() {
    if !root() {
        return;
    }
    let place = Place::new("next");
    let (mut seed, length) = (0x5eed_0002, length_of_a_run(&place));
    for turn in 0..KILLS / 3 {
        crash(&place, 1, &mut seed, length);
        let ran = place.run(1, &["--", "/bin/true"]);
        assert_eq!((ran.code, ran.status()), (0, "OK"), "turn {turn}: {}", ran.all());
        place.assert_nothing_left(&format!("turn {turn}"));
    }
}

#[test]
fn a_recovery_that_is_killed_itself_can_be_repeated() {
    if !root() {
        return;
    }
    let place = Place::new("recover");
    let (mut seed, length) = (0x5eed_0003, length_of_a_run(&place));
    for turn in 0..KILLS / 3 {
        crash(&place, 1, &mut seed, length);
        for _ in 0..2 {
            let mut child = place.command(&["recover"]).spawn().unwrap();
            sleep(Duration::from_micros(random(&mut seed, 4000)));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        for _ in 0..2 {
            let recovered = place.refbox(&["recover"]);
            assert_eq!(recovered.status.code(), Some(0), "turn {turn}: {recovered:?}");
        }
        place.assert_nothing_left(&format!("turn {turn}"));
    }
}

#[test]
fn the_payload_dies_with_its_supervisor_before_any_recovery() {
    if !root() {
        return;
    }
    let place = Place::new("dies");
    let mut held = place.held(1, &[]);
    let procs = || -> String {
        place.cgroups().iter().map(|dir| std::fs::read_to_string(dir.join("cgroup.procs")).unwrap()).collect()
    };
    assert_ne!(procs(), "");
    held.child.kill().unwrap();
    held.child.wait().unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while !procs().is_empty() {
        assert!(Instant::now() < until, "the payload lives on: {}", procs());
        sleep(Duration::from_millis(1));
    }
    let (code, health) = place.health();
    assert_eq!((code, health["status"].as_str()), (1, Some("degraded")), "{health}");
    assert_eq!(health["boxes"][0]["status"], "stale", "{health}");
    assert_eq!(place.refbox(&["recover"]).status.code(), Some(0));
    assert_eq!(place.health().0, 0);
    assert_eq!(place.audit().last().unwrap()["event"], "recovered");
    place.assert_nothing_left("recovered");
}

#[test]
fn a_crashed_box_without_its_state_is_found_by_name() {
    if !root() {
        return;
    }
    let place = Place::new("lost");
    for by_run in [false, true] {
        let mut held = place.held(1, &[]);
        held.child.kill().unwrap();
        held.child.wait().unwrap();
        std::fs::remove_file(place.state_file(1)).unwrap();
        assert!(!place.cgroups().is_empty());
        if by_run {
            assert_eq!(place.run(1, &["--", "/bin/true"]).status(), "OK");
        } else {
            assert_eq!(place.refbox(&["recover", "--box", "1"]).status.code(), Some(0));
        }
        place.assert_nothing_left("lost");
    }
}
