//! Times snapshots of this machine, wall clock and processor time: `snap host process,fd 20`, `snap cgroup:/x all 200`.

use std::time::{Duration, Instant};

use leakcheck::observe::{Options, snapshot};
use rustix::time::{ClockId, clock_gettime};

fn cpu() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

fn main() -> leakcheck::Result<()> {
    let mut args = std::env::args().skip(1);
    let scope = args.next().unwrap_or("host".to_owned()).parse()?;
    let kinds = args.next().filter(|k| k != "all").map(|k| k.parse()).transpose()?;
    let rounds: usize = args.next().and_then(|n| n.parse().ok()).unwrap_or(20).max(1);
    let threads: usize = args.next().and_then(|n| n.parse().ok()).unwrap_or(0);
    let options = Options { scope, kinds, threads, ..Options::default() };

    let seen = snapshot(&options)?;
    let kinds: Vec<_> = seen.kinds.iter().map(|k| k.as_str()).collect();
    println!("{} resources ({} processes, {} fds) of {}", seen.len(), seen.processes.len(), seen.fds.len(), kinds.join(","));
    for (kind, coverage) in seen.coverage.0.iter().filter(|(_, c)| !c.reason.is_empty()) {
        println!("{}: {:?}: {}", kind.as_str(), coverage.level, coverage.reason);
    }
    drop(seen);

    let mut wall = Vec::with_capacity(rounds);
    let before = cpu();
    for _ in 0..rounds {
        let began = Instant::now();
        drop(snapshot(&options)?);
        wall.push(began.elapsed());
    }
    let each = (cpu() - before) / u32::try_from(rounds).unwrap_or(u32::MAX);
    wall.sort();
    println!("median {:?}, best {:?}, processor time {each:?}", wall[rounds / 2], wall[0]);
    Ok(())
}
