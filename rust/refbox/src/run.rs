//! The command `run`: from the lock of a box to its result.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use leakcheck_sys as sys;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::cgroup::Group;
use crate::cgroup::plan::{LimitsBy, Place, limits_by, plan};
use crate::cli::Run;
use crate::error::{Doing, Error, Result};
use crate::identity::Identity;
use crate::job::Job;
use crate::language::{Language, first_message};
use crate::limits::{Host, Limits};
use crate::lock::Lock;
use crate::output::{Sink, Stream};
use crate::recover::{quarantine, undo};
use crate::report::{Target, json};
use crate::root::{Layout, WORK};
use crate::sabotage::removed;
use crate::seccomp;
use crate::state::{Phase, State};
use crate::store::{Found, Store};
use crate::supervise::Supervision;
use crate::user;
use crate::verdict::{Cause, Execution, Status, Verdict, judge};

const LARGEST_SOURCE: u64 = 16 << 20;

/// The outcome of a run.
struct Outcome {
    verdict: Verdict,
    seen: Option<Execution>,
    by: Option<LimitsBy>,
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        Outcome { verdict, seen: None, by: None }
    }
}

/// The caller's input, checked before anything changes.
struct Input<'a> {
    options: &'a Run,
    host: Host,
    limits: Limits,
    program: Vec<Vec<u8>>,
    source: Option<(&'static Language, Vec<u8>)>,
    stdin: OwnedFd,
    target: Target,
}

/// Runs, and returns the exit code.
pub(crate) fn run(options: &Run, store: impl FnOnce() -> Result<Store>) -> Result<u8> {
    let input = Input::check(options)?;
    let number = options.number;
    let ran = store().and_then(|store| {
        let lock = Lock::take(&store, number, options.wait)?;
        in_box(&input, &store, &lock)
    });
    let outcome = match ran {
        Ok(outcome) => outcome,
        Err(Error::Internal(why) | Error::Exhausted(why)) => {
            Verdict::new(if removed("internal") { Status::Runtime } else { Status::Internal }, why).into()
        }
        Err(e) => return Err(e),
    };
    let written = input.target.write(&json(number, &outcome.verdict, outcome.seen.as_ref(), outcome.by));
    if !removed("result") {
        written?;
    }
    if outcome.verdict.status == Status::Internal {
        return Err(Error::Internal(outcome.verdict.reason));
    }
    Ok(0)
}

impl<'a> Input<'a> {
    fn check(options: &'a Run) -> Result<Self> {
        let host = Host::new();
        let limits = options.limits();
        limits.check(&host)?;
        for dir in &options.bind {
            let wrong = |why| Err(Error::Usage(format!("--bind {}: {why}", dir.display())));
            match fs::metadata(dir) {
                _ if !dir.is_absolute() || dir.components().any(|c| c.as_os_str() == "..") => {
                    wrong("is not an absolute path")?
                }
                Err(e) => wrong(&sys::in_words(&e))?,
                Ok(found) if !found.is_dir() => wrong("is not a directory")?,
                Ok(_) if dir.parent().is_none() => wrong("would show all of the host")?,
                Ok(_) => {}
            }
        }
        let source = match (&options.language, &options.source) {
            (Some(language), Some(path)) => {
                let language = Language::named(language)?;
                // Both programs must exist.
                language.compile_command(&limits)?;
                language.run_command(&limits)?;
                Some((language, read_source(path)?))
            }
            _ => None,
        };
        let program = match &source {
            Some((language, _)) => language.run_command(&limits)?.into_iter().map(String::into_bytes).collect(),
            None => check_program(options)?,
        };
        let stdin = options.stdin.clone().unwrap_or_else(|| "/dev/null".into());
        let stdin = File::open(&stdin).doing("--stdin", &stdin).map_err(Error::into_usage)?;
        let target = Target::new(&options.result)?;
        Ok(Input { options, host, limits, program, source, stdin: stdin.into(), target })
    }

    fn streams(&self) -> Result<[Stream; 2]> {
        let own = |fd: std::io::Result<OwnedFd>| fd.during("pass output on");
        let open = |name: &str, path: &Option<PathBuf>, inherited: std::io::Result<OwnedFd>| -> Result<Stream> {
            let file = match path {
                Some(path) => File::create(path).doing(name, path).map_err(Error::into_usage)?,
                None => File::from(own(inherited)?),
            };
            Ok(Stream::new(Sink::File(file)))
        };
        use std::os::fd::AsFd;
        Ok([
            open("--stdout", &self.options.stdout, std::io::stdout().as_fd().try_clone_to_owned())?,
            open("--stderr", &self.options.stderr, std::io::stderr().as_fd().try_clone_to_owned())?,
        ])
    }
}

fn read_source(path: &Path) -> Result<Vec<u8>> {
    let found = fs::metadata(path).doing("--source", path).map_err(Error::into_usage)?;
    if !found.is_file() || found.len() > LARGEST_SOURCE {
        let why = format!("--source {}: is not a regular file of at most {LARGEST_SOURCE} bytes", path.display());
        return Err(Error::Usage(why));
    }
    fs::read(path).doing("--source", path).map_err(Error::into_usage)
}

fn check_program(options: &Run) -> Result<Vec<Vec<u8>>> {
    let words = options.program();
    let program = Path::new(&words[0]);
    let wrong = |why: &str| Error::Usage(format!("program {}: {why}", program.display()));
    if !program.is_absolute() {
        return Err(wrong("is not an absolute path"));
    }
    let found = fs::metadata(program).doing("program", program).map_err(Error::into_usage)?;
    if !found.is_file() {
        return Err(wrong("is not a regular file"));
    }
    Ok(words.iter().map(|word| word.clone().into_vec()).collect())
}

/// One run in a box that is locked.
struct Session<'a> {
    input: &'a Input<'a>,
    store: &'a Store,
    places: Vec<Place>,
    state: State,
    signals: OwnedFd,
}

fn in_box(input: &Input, store: &Store, lock: &Lock) -> Result<Outcome> {
    let number = input.options.number;
    match store.read(number)? {
        Found::Idle => {}
        Found::State(State { quarantined: Some(reason), .. }) => return Err(Error::Quarantined { number, reason }),
        Found::State(_) if removed("survivor") => {}
        Found::State(_) | Found::Corrupt(_) => undo(store, number, lock)?,
    }
    let mut streams = input.streams()?;
    input.target.clear()?;
    let signals = sys::signal_fd(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP]).during("block signals")?;
    let places = plan(&store.cgroup_name(number))?;
    let by = limits_by(&places);
    if input.options.require_cgroups && [by.memory, by.processes, by.cpu].contains(&"rlimit") {
        let by = serde_json::to_string(&by).expect("has string keys only");
        return Err(Error::Usage(format!("--require-cgroups: cgroups cannot enforce every limit here: {by}")));
    }
    let cgroups = places.iter().map(|place| place.dir.clone()).collect();
    let supervisor = Identity::own()?;
    let state = State { number, phase: Phase::Setup, supervisor, cgroups, quarantined: None };
    let mut session = Session { input, store, places, state, signals };
    let done = session.compile_and_run(&mut streams);
    if !session.in_quarantine() {
        // From here on the box is idle; the last phase is the verdict.
        if let Err(e) = store.remove(number) {
            return Err(session.quarantine(&e));
        }
    }
    let mut outcome = done?;
    for stream in &mut streams {
        stream.finish()?;
    }
    outcome.by = Some(by);
    Ok(outcome)
}

impl Session<'_> {
    fn compile_and_run(&mut self, streams: &mut [Stream; 2]) -> Result<Outcome> {
        let Some((language, source)) = &self.input.source else {
            return self.run(streams, None);
        };
        let archive = memfd_create("refbox", MemfdFlags::CLOEXEC).during("make memory file")?;
        let limits = Limits::of_compiler(&self.input.host);
        let argv = language.compile_command(&limits)?.into_iter().map(String::into_bytes).collect();
        let job = self.job(argv, limits, Some((language.file, source.clone())))?;
        let mut messages = [(); 2].map(|()| Stream::new(Sink::Memory(Vec::new())));
        let seen = self.execute(&job, &mut messages, Some(&archive))?;
        let verdict = judge(&seen, &job.limits);
        let reason = match verdict.status {
            Status::Ok => return self.run(streams, Some(&archive)),
            Status::Internal => return Ok(verdict.into()),
            Status::Runtime => first_message(&messages.iter().rev().map(Stream::text).collect::<String>()).to_owned(),
            Status::Time | Status::Memory | Status::Output | Status::Compile => format!("compiler: {}", verdict.reason),
        };
        Ok(Verdict::new(Status::Compile, reason).into())
    }

    fn run(&mut self, streams: &mut [Stream; 2], archive: Option<&OwnedFd>) -> Result<Outcome> {
        let mut job = self.job(self.input.program.clone(), self.input.limits.clone(), None)?;
        if let Some(files) = archive {
            // The compiler's files do not count as the payload's memory.
            let made = rustix::fs::fstat(files).during("look at what the compiler made")?;
            job.layout.size += made.st_size.unsigned_abs();
        }
        let seen = self.execute(&job, streams, archive)?;
        if let Cause::NotExecutable(why) = seen.cause {
            return Err(Error::Usage(format!("{why}; is it visible in the box? --bind DIR shows more")));
        }
        Ok(Outcome { verdict: judge(&seen, &job.limits), seen: Some(seen), by: None })
    }

    fn job(&self, argv: Vec<Vec<u8>>, limits: Limits, source: Option<(&'static str, Vec<u8>)>) -> Result<Job> {
        let by = limits_by(&self.places);
        let user = user::of_box(self.state.number);
        let env = ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", "TMPDIR=/tmp"].map(str::to_owned);
        let env = env.into_iter().chain([format!("HOME={WORK}")]);
        Ok(Job {
            // Only the compiler's job has a source.
            pack: source.is_some(),
            argv: argv.into_iter().map(CString::new).collect::<Result<_, _>>()?,
            env: env.map(CString::new).collect::<Result<_, _>>()?,
            layout: Layout {
                stage: self.store.dir().to_owned(),
                binds: self.input.options.bind.clone(),
                size: limits.memory,
                user,
                user_namespace: self.input.options.user_namespace || user.is_none(),
                source,
            },
            filter: seccomp::program()?,
            rlimit_memory: by.memory == "rlimit",
            rlimit_processes: by.processes == "rlimit",
            limits,
        })
    }

    /// Creates the resources, runs the job, and always removes the resources again.
    fn execute(&mut self, job: &Job, streams: &mut [Stream; 2], archive: Option<&OwnedFd>) -> Result<Execution> {
        self.state.phase = Phase::Setup;
        let written = self.store.write(&self.state)?;
        let places = std::mem::take(&mut self.places);
        let mut group = Group::new(&places);
        let made = group.make().and_then(|()| group.limit(&job.limits));
        let seen = made.and_then(|()| {
            let supervision = Supervision {
                job,
                group: &group,
                cpus: self.input.host.cpus,
                stdin: &self.input.stdin,
                archive,
                signals: &self.signals,
            };
            supervision.execute(streams, &|phase| written.enter(phase))
        });
        let entered = written.enter(Phase::Cleanup);
        let removed = group.remove();
        self.places = places;
        // If this fails, the box is damaged, whatever else failed.
        removed.map_err(|e| self.quarantine(&e))?;
        entered?;
        seen
    }

    fn in_quarantine(&self) -> bool {
        self.state.quarantined.is_some()
    }

    /// Turns the run into an internal error; the next run finds the box out of service.
    fn quarantine(&mut self, e: &Error) -> Error {
        let why = format!("clean-up failed: {e}");
        self.state.quarantined = Some(why.clone());
        match quarantine(self.store, self.state.number, self.state.cgroups.clone(), &why) {
            Error::Quarantined { reason, .. } => Error::Internal(reason),
            other => other,
        }
    }
}
