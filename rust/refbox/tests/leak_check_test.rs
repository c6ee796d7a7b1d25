//! QA-REL-001, 6: after 1,000 executions that end by themselves, by timeout, by crash and by force, nothing is left.

mod common;

use std::thread;
use std::time::Duration;

use common::{Place, finish, guard, random, root};

const BOXES: u16 = 4;
const RUNS: usize = 250;

/// How one execution ends.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Normal,
    Timeout,
    Crash,
    /// An operator's SIGTERM, or SIGKILL of the supervisor and then a recovery.
    Forced,
}

const ENDINGS: [Ending; 4] = [Ending::Normal, Ending::Timeout, Ending::Crash, Ending::Forced];

fn execute(place: &Place, number: u16, ending: Ending, seed: &mut u64) {
    let (program, status): (&[&str], &str) = match ending {
        Ending::Normal => (&["--", "/bin/true"], "OK"),
        Ending::Timeout => (&["--wall", "0.02", "--", "/bin/sleep", "600"], "TLE"),
        Ending::Crash => (&["--", "/bin/sh", "-c", "kill -SEGV $$"], "RE"),
        Ending::Forced => (&["--", "/bin/sleep", "600"], ""),
    };
    if let Ending::Forced = ending {
        let child = place.run_command(number, program).spawn().unwrap();
        thread::sleep(Duration::from_micros(random(seed, 20_000)));
        let pidfd = leakcheck_sys::open_pidfd(child.id().cast_signed()).unwrap();
        let signal = [rustix::process::Signal::TERM, rustix::process::Signal::KILL][random(seed, 2) as usize];
        rustix::process::pidfd_send_signal(&pidfd, signal).unwrap();
        finish(child);
        let recovered = place.refbox(&["recover", "--box", &number.to_string()]);
        assert_eq!(recovered.status.code(), Some(0), "{signal:?}: {recovered:?}");
    } else {
        let ran = place.run(number, program);
        assert_eq!((ran.code, ran.status()), (0, status), "{ending:?}: {}", ran.all());
    }
}

#[test]
fn a_thousand_executions_with_all_four_endings_leave_nothing() {
    if !root() {
        return;
    }
    let _guard = guard();
    let place = Place::new("thousand");
    thread::scope(|scope| {
        for number in 1..=BOXES {
            let place = &place;
            scope.spawn(move || {
                let mut seed = 0x5eed_0000 + u64::from(number);
                for run in 0..RUNS {
                    execute(place, number, ENDINGS[run % ENDINGS.len()], &mut seed);
                }
            });
        }
    });
    place.assert_nothing_left("after all executions");
    assert_eq!(place.health().0, 0);
}
