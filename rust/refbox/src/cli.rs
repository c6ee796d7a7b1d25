//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::limits::Limits;
use crate::units;

const EXIT_CODES: &str = "\
Exit codes of run:
  0  a result was written; its status is OK, TLE, MLE, RE, OLE or CE
  1  IE: the sandbox itself failed; a result was written if the box was ours
  2  wrong usage, or an input that is unusable
  3  the box is in use
  4  the box is quarantined
Exit codes of health: 0 healthy, 1 otherwise.
Exit codes of recover and clean: 0 also if there is nothing to do, otherwise as above.";

/// Runs programs in boxes, with limits and isolated from the host, and leaves nothing behind.
#[derive(Debug, Parser)]
#[command(name = "refbox", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// Directory of locks and state [default: /run/refbox, or $XDG_RUNTIME_DIR/refbox for an ordinary user]
    #[arg(long, global = true, env = "REFBOX_STATE", value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a program, or compile and run a source file: refbox run --box 0 -- /bin/echo hello
    #[command(after_help = EXIT_CODES)]
    Run(Box<Run>),
    /// Remove what a crashed run left, and return the box to service
    Recover {
        /// Recover only this box
        #[arg(long = "box", value_name = "N", value_parser = box_number, allow_negative_numbers = true)]
        number: Option<u16>,
    },
    /// Print the state of all boxes as JSON
    Health,
    /// Recover a box, and remove all its records except the lock file
    Clean {
        #[arg(long = "box", value_name = "N", value_parser = box_number, allow_negative_numbers = true)]
        number: u16,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Run {
    /// The box, 0 to 9999; one run at a time in each
    #[arg(long = "box", value_name = "N", value_parser = box_number, allow_negative_numbers = true)]
    pub(crate) number: u16,
    /// Language of --source: c, cpp, go, java, node, python, rust
    #[arg(long, value_name = "L", requires = "source")]
    pub(crate) language: Option<String>,
    /// Source file, which is compiled in the same sandbox; a Java class must have the name Main
    #[arg(long, value_name = "FILE", requires = "language", conflicts_with = "words")]
    pub(crate) source: Option<PathBuf>,
    /// Wall-clock limit in seconds
    #[arg(long, value_name = "S", default_value = "10", value_parser = units::seconds, allow_negative_numbers = true)]
    pub(crate) wall: Duration,
    /// Limit of processor time in seconds, for all processes together
    #[arg(long, value_name = "S", default_value = "10", value_parser = units::seconds, allow_negative_numbers = true)]
    pub(crate) cpu: Duration,
    /// Memory limit in bytes, including temporary files (suffixes K, M, G)
    #[arg(long, value_name = "B", default_value = "256M", value_parser = units::bytes, allow_hyphen_values = true)]
    pub(crate) memory: u64,
    /// Maximum number of processes and threads at the same time
    #[arg(long, value_name = "N", default_value = "64", value_parser = units::count, allow_negative_numbers = true)]
    pub(crate) processes: u32,
    /// Size limit of each file in bytes
    #[arg(long, value_name = "B", default_value = "64M", value_parser = units::bytes, allow_hyphen_values = true)]
    pub(crate) file_size: u64,
    /// Limit in bytes of stdout and stderr together
    #[arg(long, value_name = "B", default_value = "64M", value_parser = units::bytes, allow_hyphen_values = true)]
    pub(crate) output: u64,
    /// File for the payload's stdin [default: empty]
    #[arg(long, value_name = "FILE")]
    pub(crate) stdin: Option<PathBuf>,
    /// File for the payload's stdout [default: refbox's own stdout]
    #[arg(long, value_name = "FILE")]
    pub(crate) stdout: Option<PathBuf>,
    /// File for the payload's stderr [default: refbox's own stderr]
    #[arg(long, value_name = "FILE")]
    pub(crate) stderr: Option<PathBuf>,
    /// File for the result, as JSON; it is written completely or not at all
    #[arg(long, value_name = "FILE")]
    pub(crate) result: PathBuf,
    /// Show the payload another directory, at the same path and read-only; repeatable
    #[arg(long, value_name = "DIR")]
    pub(crate) bind: Vec<PathBuf>,
    /// Wait while the box is in use
    #[arg(long, overrides_with = "no_wait")]
    pub(crate) wait: bool,
    /// Exit with 3 while the box is in use (the default)
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Use a user namespace for root too; an ordinary user always gets one
    #[arg(long)]
    pub(crate) user_namespace: bool,
    /// Fail if only an rlimit can enforce one of the limits
    #[arg(long)]
    pub(crate) require_cgroups: bool,
    /// Absolute path of the program; its arguments follow after two dashes
    #[arg(long = "program", value_name = "FILE", conflicts_with = "source")]
    named: Option<OsString>,
    /// Absolute path of the program, and its arguments; with --program only the arguments
    #[arg(last = true, value_name = "PROGRAM", required_unless_present_any = ["source", "named"])]
    words: Vec<OsString>,
}

impl Run {
    /// The program and its arguments; empty for a source file.
    pub(crate) fn program(&self) -> Vec<OsString> {
        self.named.iter().chain(&self.words).cloned().collect()
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            wall: self.wall,
            cpu: self.cpu,
            memory: self.memory,
            processes: self.processes,
            file_size: self.file_size,
            output: self.output,
        }
    }
}

fn box_number(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|n| *n <= 9999).ok_or_else(|| "a box number is 0 to 9999".to_owned())
}

/// clap's message without its usage and hints, on one line.
pub(crate) fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let message = text.split("\n\n").next().unwrap_or(&text);
    let words: Vec<&str> = message.trim_start_matches("error: ").split_whitespace().collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &str) -> Result<Box<Run>, String> {
        let all = ["refbox", "run"].into_iter().chain(words.split_whitespace());
        match Cli::try_parse_from(all).map_err(|e| one_line(&e))?.command {
            Command::Run(run) => Ok(run),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_follows_two_dashes_is_the_program_with_its_arguments() {
        let run = run("--box 3 --result r --wall 0.5 --memory 64M -- /bin/echo --box x").unwrap();
        assert_eq!(run.program(), ["/bin/echo", "--box", "x"]);
        assert_eq!((run.number, run.wall, run.memory), (3, Duration::from_millis(500), 64 << 20));
    }

    #[test]
    fn a_program_by_name_takes_its_arguments_after_two_dashes() {
        let given = run("--box 3 --program /bin/echo --result r -- --box x").unwrap();
        assert_eq!(given.program(), ["/bin/echo", "--box", "x"]);
        assert_eq!(run("--box 3 --program /bin/true --result r").unwrap().program(), ["/bin/true"]);
        assert!(run("--box 3 --program /bin/true --language c --source x --result r").is_err());
    }

    #[test]
    fn wrong_usage_is_reported_on_one_line() {
        for (words, part) in [
            ("--result r -- /bin/true", "--box <N>"),
            ("--box 10000 --result r -- /bin/true", "a box number is 0 to 9999"),
            ("--box 1 --result r --wall -1 -- /bin/true", "must be above 0 seconds"),
            ("--box 1 --result r --memory 0 -- /bin/true", "must be above 0 bytes"),
            ("--box 1 --result r --memory -5M -- /bin/true", "must be above 0 bytes"),
            ("--box 1 --result r --processes -5 -- /bin/true", "must be above 0"),
            ("--box 1 --result r", "PROGRAM"),
            ("--box 1 --result r --source x", "--language"),
            ("--box 1 --result r --language c --source x -- /bin/true", "cannot be used with"),
        ] {
            let message = run(words).unwrap_err();
            assert!(message.contains(part) && !message.contains('\n'), "{words}: {message}");
        }
    }
}
