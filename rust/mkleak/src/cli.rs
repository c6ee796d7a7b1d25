//! The command line, and `--list`.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use crate::child::PAUSE;
use crate::plants::{self, Entry};

pub(crate) const USAGE: &str = "\
Plants exactly one named leak, says READY, waits on stdin, and takes it away again.

usage: mkleak --list [--json]
       mkleak NAME [--dir DIR] [--cgroup DIR] [--hold]

  --list        one line a plant: name, kind, needs
  --dir DIR     where file-like plants go (default /tmp); it must exist
  --cgroup DIR  the cgroup directory below which cgroup plants go (default: mkleak's own)
  --hold        say WAITING and wait for a line before planting, and for one more after CLEAN

Without --hold:  READY {json}, a line, CLEAN.
With --hold:     WAITING {json}, a line, READY {json}, a line, CLEAN, a line.
The end of stdin, SIGTERM, SIGINT and SIGHUP clean up at any point. SIGKILL leaves the leak behind.

exit: 0 done, 2 usage, 4 the plant failed and was undone, 77 this plant can't exist here
";

/// The caller's request.
pub(crate) enum Request {
    Help,
    List { json: bool },
    Pause,
    Plant(Job),
}

/// The plant to make, and where.
pub(crate) struct Job {
    pub(crate) entry: Entry,
    pub(crate) dir: PathBuf,
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) hold: bool,
}

pub(crate) fn parse(arguments: &[OsString]) -> Result<Request, String> {
    let (mut name, mut dir, mut cgroup) = (None, None, None);
    let (mut list, mut json, mut hold) = (false, false, false);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut directory = |option| match rest.next() {
            Some(path) => existing_directory(option, path).map(Some),
            None => Err(format!("{option} needs a directory")),
        };
        match argument.to_string_lossy().as_ref() {
            "--help" | "-h" => return Ok(Request::Help),
            PAUSE if arguments.len() == 1 => return Ok(Request::Pause),
            "--list" => list = true,
            "--json" => json = true,
            "--hold" => hold = true,
            "--dir" => dir = directory("--dir")?,
            "--cgroup" => cgroup = directory("--cgroup")?,
            option if option.starts_with('-') => {
                return Err(format!("unknown option {option:?}; see --help"));
            }
            word if name.is_none() => name = Some(word.to_owned()),
            word => return Err(format!("one plant at a time: {word:?} is one too many")),
        }
    }
    if list {
        return Ok(Request::List { json });
    }
    let name = name.ok_or("no plant named; see --list and --help")?;
    let entry = plants::find(&name).ok_or_else(|| unknown(&name))?;
    let dir = match dir {
        Some(dir) => dir,
        None => existing_directory("--dir", &OsString::from("/tmp"))?,
    };
    Ok(Request::Plant(Job { entry, dir, cgroup, hold }))
}

/// The absolute path, since plants change the working directory.
fn existing_directory(option: &str, path: &OsString) -> Result<PathBuf, String> {
    let absolute = std::fs::canonicalize(path).map_err(|error| format!("{option} {path:?}: {error}"))?;
    if absolute.is_dir() { Ok(absolute) } else { Err(format!("{option} {path:?}: not a directory")) }
}

fn unknown(name: &str) -> String {
    let near = near(name);
    if near.is_empty() {
        format!("unknown plant {name:?}; see --list")
    } else {
        format!("unknown plant {name:?}; near it: {}", near.join(", "))
    }
}

/// The plants whose name contains the given one or differs from it by at most three edits, the nearest first.
fn near(name: &str) -> Vec<&'static str> {
    let mut near: Vec<_> = plants::all()
        .map(|entry| entry.plant.name)
        .filter_map(|known| {
            let distance = edit_distance(name, known);
            let part = name.len() >= 2 && (known.contains(name) || name.contains(known));
            (part || distance <= 3).then_some((distance, known))
        })
        .collect();
    near.sort_unstable();
    near.into_iter().take(8).map(|(_, known)| known).collect()
}

/// Levenshtein's distance, in bytes (names are ASCII).
fn edit_distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

pub(crate) fn list(as_json: bool) -> String {
    if as_json {
        let plants: Vec<_> = plants::all()
            .map(|Entry { kind, plant }| {
                json!({"name": plant.name, "kind": kind, "needs": plant.needs, "what": plant.what})
            })
            .collect();
        return format!("{}\n", json!(plants));
    }
    plants::all().fold(String::new(), |mut lines, Entry { kind, plant }| {
        let needs = if plant.needs.is_empty() { "-".to_owned() } else { plant.needs.join(",") };
        let _ = writeln!(lines, "{:24} {:10} {needs}", plant.name, kind);
        lines
    })
}

/// Not `print!`, which panics if the reader (such as `head`) has exited.
pub(crate) fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance_counts_insertions_deletions_and_substitutions() {
        assert_eq!(edit_distance("zombie", "zombie"), 0);
        assert_eq!(edit_distance("zombi", "zombie"), 1);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
    }

    #[test]
    fn a_misspelt_name_is_answered_with_the_one_that_was_meant() {
        assert_eq!(near("zombei")[0], "zombie");
        assert!(near("flock").contains(&"lock-flock"));
        assert!(near("nothing-like-it-at-all").is_empty());
    }

    #[test]
    fn every_name_is_unique_and_every_sentence_is_one() {
        let mut names: Vec<_> = plants::all().map(|entry| entry.plant.name).collect();
        let planted = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), planted);
        for Entry { plant, .. } in plants::all() {
            assert!(plant.what.contains(" ") && !plant.what.ends_with('.'), "{}", plant.name);
        }
    }
}
