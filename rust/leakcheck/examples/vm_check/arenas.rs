//! Arenas on cgroup v2 alone: what they give, and that nothing of them stays.

#[path = "../../tests/arena_support/mod.rs"]
mod arena_support;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use arena_support::Arena;
use leakcheck::guard::{Guard, verify_none};
use leakcheck::{Kind, Verdict, observe};
use serde_json::{Value, json};

use super::{Done, Failure, Tally, gaps, labels, options, text};

const TOP: &str = "/sys/fs/cgroup";

type Check = fn() -> Done;
const CHECKS: [(&str, Check); 6] = [
    ("arena-leaves-nothing", leaves_nothing),
    ("arena-passes-controllers-on", passes_controllers_on),
    ("arena-limit-holds", limit_holds),
    ("arena-below-a-cgroup-without-controllers", without_controllers),
    ("arena-guard-of-an-orphan", orphan),
    ("arena-of-a-killed-warden-is-swept", swept),
];

/// Whether an arena comes up here; if not, the warden's words.
pub(crate) fn whether() -> String {
    Arena::made(json!({})).map_or_else(|why| why, |_| "comes up".to_owned())
}

/// Every check of arenas.
pub(crate) fn check(mkleak: &Path, plants: &[Value], tally: &mut Tally) {
    for (name, check) in CHECKS {
        tally.note(name, caught(check));
    }
    let mut arena = None;
    for plant in plants {
        let name = text(plant, "name");
        // One that a failed plant was in would blame the next for it.
        let inside = arena.take().map_or_else(|| caught(with_loops), Ok);
        let outcome = inside.and_then(|inside: Arena| {
            let kind: Kind = text(plant, "kind").parse()?;
            let outcome = caught(|| inside.plant(&mkleak.to_string_lossy(), name, kind))?;
            match outcome {
                None => Ok((Done::Skipped("cannot exist there".to_owned()), inside)),
                Some(Ok(())) => Ok((Done::Ok("found, and gone again".to_owned()), inside)),
                Some(Err(why)) => Err(why.into()),
            }
        });
        let done = outcome.map(|(done, inside)| {
            arena = Some(inside);
            done
        });
        tally.note(&format!("arena-{name}"), done);
    }
}

/// What the code shared with the tests says by a panic is an error here.
fn caught<T>(check: impl FnOnce() -> T) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(check)).map_err(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked").into()
    })
}

fn with_loops() -> Arena {
    let loops = (0..8).map(|n| format!("loop{n}")).chain(["loop-control".to_owned()]);
    let devices: Vec<String> = loops.filter(|name| Path::new("/dev").join(name).exists()).collect();
    Arena::with(json!({ "devices": devices })).expect("we are root")
}

fn up() -> Arena {
    Arena::up().expect("we are root")
}

fn arenas_cgroups() -> Vec<PathBuf> {
    let entries = fs::read_dir(TOP).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.display().to_string().contains("/leakcheck-arena-")).collect()
}

/// Fails unless the host is as in `before`.
fn nothing_left(before: &leakcheck::Snapshot) {
    let report = verify_none(before, before, &options(Vec::new())).unwrap();
    assert_eq!(report.verdict, Verdict::Clean, "{}; {}", labels(&report), gaps(&report));
    assert_eq!(arenas_cgroups(), Vec::<PathBuf>::new());
}

fn leaves_nothing() -> Done {
    let before = observe::snapshot(&options(Vec::new()).observe).unwrap();
    let arena = up();
    arena.sh(
        "sleep 1000 & mkdir -p /mnt && mount -t tmpfs inside /mnt && mkdir /sys/fs/cgroup/box && echo x >/etc-file",
    );
    let made = arenas_cgroups().len();
    drop(arena);
    nothing_left(&before);
    assert_eq!(made, 1);
    Done::Ok("processes, mounts and cgroups are gone".to_owned())
}

fn passes_controllers_on() -> Done {
    let before = observe::snapshot(&options(Vec::new()).observe).unwrap();
    let arena = up();
    arena.sh("cd /sys/fs/cgroup && mkdir box && cd box && grep -qw pids cgroup.controllers && grep -qw memory cgroup.controllers");
    arena.sh("cd /sys/fs/cgroup/box && echo 1 >pids.max && sh -c 'echo 0 >cgroup.procs; (:) & wait'; grep -q '^max [1-9]' pids.events");
    drop(arena);
    nothing_left(&before);
    Done::Ok("a cgroup made inside has pids and memory, and its pids.max holds".to_owned())
}

fn limit_holds() -> Done {
    let arena = Arena::with(json!({"limits": [["pids.max", "8"], ["memory.max", "64M"]]})).expect("we are root");
    let many = "for n in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done";
    let status = arena.start(&["/bin/sh", "-c", many]).wait();
    assert_ne!(status, 0, "nine processes were made");
    let dir = arenas_cgroups().pop().unwrap();
    let said = |file: &str| fs::read_to_string(dir.join(file)).unwrap().trim().to_owned();
    let (now, most) = (said("pids.current"), said("memory.max"));
    assert!(now.parse::<u32>().unwrap() <= 8, "{now} processes");
    assert_eq!(most, "67108864");
    Done::Ok("no ninth process; memory.max is as given".to_owned())
}

fn without_controllers() -> Done {
    let session = Path::new(TOP).join("session");
    fs::create_dir(&session).unwrap();
    let enter = |dir: &Path| fs::write(dir.join("cgroup.procs"), "0").unwrap();
    enter(&session);
    let outcome = caught(|| {
        let arena = up();
        arena.sh("mkdir /sys/fs/cgroup/box && echo 0 >/sys/fs/cgroup/box/cgroup.procs");
    });
    enter(Path::new(TOP));
    fs::remove_dir(&session).unwrap();
    outcome.unwrap_or_else(|why| panic!("{why}"));
    Done::Ok("up and down".to_owned())
}

fn orphan() -> Done {
    let arena = up();
    let mut guard: Guard = arena.guard(&[]);
    arena.sh("sleep 1000 & exit 0");
    let report = guard.end(None).unwrap();
    assert_eq!(report.verdict, Verdict::Leaked, "{}", gaps(&report));
    let kinds: Vec<Kind> = report.leaks.iter().map(|leak| leak.kind).collect();
    assert_eq!(kinds, [Kind::Process], "{}", labels(&report));
    Done::Ok(labels(&report))
}

fn swept() -> Done {
    let before = observe::snapshot(&options(Vec::new()).observe).unwrap();
    let arena = up();
    arena.sh("sleep 1000 & mkdir /sys/fs/cgroup/box && echo $! >/sys/fs/cgroup/box/cgroup.procs");
    arena.kill_warden();
    let left = arenas_cgroups();
    assert_eq!(left.len(), 1, "{left:?}");
    let began = Instant::now();
    while !fs::read_to_string(left[0].join("cgroup.events")).unwrap().contains("populated 0") {
        assert!(began.elapsed() < Duration::from_secs(20), "processes live on without their warden");
        std::thread::sleep(Duration::from_millis(5));
    }
    let next = up();
    assert!(!left[0].exists(), "{} was not swept", left[0].display());
    drop(next);
    nothing_left(&before);
    Done::Ok(format!("{} was left without processes and swept", left[0].display()))
}
