//! Times snapshots of this machine: `cargo run --release --example snap -- host process,fd 20`.
use leakcheck::observe::{Options, snapshot};
fn main() -> leakcheck::Result<()> {
    let mut args = std::env::args().skip(1);
    let scope = args.next().unwrap_or("host".into()).parse()?;
    let kinds = args.next().filter(|k| k != "all").map(|k| k.parse()).transpose()?;
    let n: usize = args.next().and_then(|n| n.parse().ok()).unwrap_or(5);
    let options = Options { scope, kinds, roots: std::env::var_os("ROOTS").map(|r| vec![r.into()]), ..Options::default() };
    let mut times = Vec::new();
    for i in 0..n {
        let s = snapshot(&options)?;
        times.push(s.took_ns);
        if i == 0 {
            for k in s.kinds.iter() { print!("{k} "); }
            println!("{} procs {} fds {} mounts {} cgroups {} locks {} files {} ns {} ipc {} net; coverage {:?} unreadable {:?} gauges {:?}", s.processes.len(), s.fds.len(), s.mounts.len(), s.cgroups.len(), s.locks.len(), s.files.len(), s.namespaces.len(), s.ipc.len(), s.net.len(), s.coverage.0.iter().filter(|c| !c.1.reason.is_empty()).collect::<Vec<_>>(), s.unreadable, s.gauges);
        }
    }
    times.sort();
    println!("median {} µs min {} µs", times[n / 2] / 1000, times[0] / 1000);
    Ok(())
}
