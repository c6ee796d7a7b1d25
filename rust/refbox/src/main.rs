//! refbox: runs a program in a box, and leaves nothing behind.
//!
//! `run` defines the order: it locks a box, records every resource that it is going to create, creates the resources,
//! watches the payload, removes everything, and writes the result. Whichever process dies at whatever instant,
//! `recover` finds what is left through the record or by its name.

#![forbid(unsafe_code)]

mod archive;
mod cgroup;
mod cli;
mod directory;
mod error;
mod health;
mod identity;
mod init;
mod job;
mod language;
mod limits;
mod lock;
mod message;
mod output;
mod payload;
mod recover;
mod report;
mod root;
mod run;
mod sabotage;
mod seccomp;
mod state;
mod store;
mod supervise;
mod units;
mod user;
mod verdict;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::cli::{Cli, Command};
use crate::error::{Doing, Result};
use crate::store::Store;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // A closed pipe is not our failure.
            let _ = e.print();
            return ExitCode::SUCCESS;
        }
        Err(e) => {
            eprintln!("refbox: {}", cli::one_line(&e));
            return ExitCode::from(2);
        }
    };
    match perform(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("refbox: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}

fn perform(cli: &Cli) -> Result<u8> {
    let store = || Store::open(cli.state.as_deref());
    match &cli.command {
        Command::Run(options) => run::run(options, store),
        Command::Recover { number } => recover::recover(&store()?, *number).map(|()| 0),
        Command::Clean { number } => recover::clean(&store()?, *number).map(|()| 0),
        Command::Health => {
            let (text, healthy) = health::health(&store()?)?;
            writeln!(std::io::stdout(), "{text}").during("print the health")?;
            Ok(u8::from(!healthy))
        }
    }
}
