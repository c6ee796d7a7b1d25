//! Plants exactly one named leak, says `READY`, waits on stdin, and takes the leak away again.
//!
//! ```text
//! mkleak --list [--json]
//! mkleak NAME [--dir DIR] [--cgroup DIR] [--hold]
//! ```
//!
//! Without `--hold`: plant, print `READY {json}`, wait for a line, clean up, print `CLEAN`, exit.
//!
//! With `--hold`: print `WAITING {"pid":N}` first and wait for a line, so that an observer can take its
//! baseline with this process and the plant's scaffolding (mount points, lock files to be locked, sockets
//! to send through) already there; then plant, `READY {json}`, a line, clean up, `CLEAN`, and wait for one
//! more line before the scaffolding and the process go. What differs between `WAITING` and `READY` is the
//! leak and nothing else; what differs between `WAITING` and `CLEAN` is nothing.
//!
//! The end of stdin, SIGTERM, SIGINT or SIGHUP clean up at any point. **SIGKILL of mkleak leaves the leak
//! behind**: that is what it is for.
//!
//! Exit codes: 0 done · 2 usage · 4 the plant failed and was undone · 77 this plant can't exist here (no
//! kernel support or no privilege; one line of reason on stderr, possibly after `WAITING`).

#![forbid(unsafe_code)]

mod child;
mod cli;
mod error;
mod facts;
mod orphan;
mod plants;
mod run;
mod stage;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match cli::parse(&arguments) {
        Ok(cli::Request::Help) => cli::print(cli::USAGE),
        Ok(cli::Request::List { json }) => cli::print(&cli::list(json)),
        Ok(cli::Request::Pause) => child::pause(),
        Ok(cli::Request::Plant(job)) => match run::run(&job) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("mkleak: {}: {error}", job.entry.plant.name);
                ExitCode::from(error.exit_code())
            }
        },
        Err(complaint) => {
            eprintln!("mkleak: {complaint}");
            ExitCode::from(2)
        }
    }
}
