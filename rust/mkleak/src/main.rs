//! Plants exactly one named leak, prints `READY`, waits on stdin, and removes the leak.
//!
//! ```text
//! mkleak --list [--json]
//! mkleak NAME [--dir DIR] [--cgroup DIR] [--hold]
//! ```
//!
//! Without `--hold`: plant, print `READY {json}`, wait for a line, clean up, print `CLEAN`, exit.
//!
//! With `--hold`: first print `WAITING {"pid":N}` and wait for a line. At this point an observer takes its baseline: this
//! process and the plant's scaffolding (mount points, lock files to be locked, sockets to send through) exist already.
//! Then plant, print `READY {json}`, wait for a line, clean up, print `CLEAN`, and wait for one more line before the
//! scaffolding and the process end. Between `WAITING` and `READY` only the leak differs; between `WAITING` and `CLEAN`
//! nothing differs.
//!
//! The end of stdin, SIGTERM, SIGINT and SIGHUP clean up at any point. **SIGKILL of mkleak leaves the leak behind**, as
//! intended.
//!
//! Exit codes: 0 done · 2 usage · 4 the plant failed and was undone · 77 this plant can't exist here (no kernel support or
//! no privilege; stderr has the reason on one line, possibly after `WAITING`).

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
