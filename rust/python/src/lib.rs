//! The binding decides nothing: it converts, calls and converts back. Reports cross the boundary as JSON text.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use leakcheck::guard;
use leakcheck::judge::allow::Rules;
use leakcheck::judge::report::Command;
use leakcheck::judge::settle::Policy;
use leakcheck::{Error, KindSet, ObservedArena, observe};
use pyo3::import_exception;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

mod arena;
mod stack;
use arena::{ArenaView, Settings, environment};

import_exception!(leakcheck.errors, NativeError);
import_exception!(leakcheck.errors, UsageError);

fn to_py(error: Error) -> PyErr {
    let message = error.to_string();
    if error.is_usage() { UsageError::new_err(message) } else { NativeError::new_err(message) }
}

/// Runs the core without the GIL. A panic there is a bug and becomes an ordinary error instead of pyo3's
/// `PanicException`, which `except Exception` does not catch.
fn safely<T: Send>(py: Python<'_>, run: impl FnOnce() -> leakcheck::Result<T> + Send) -> PyResult<T> {
    match py.detach(|| std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))) {
        Ok(result) => result.map_err(to_py),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let what = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(NativeError::new_err(format!("internal error in the native core: {what}")))
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "the arguments of three Python functions")]
fn options(
    scope: &str,
    kinds: Option<&str>,
    roots: Option<Vec<PathBuf>>,
    lock_files: Vec<PathBuf>,
    threads: usize,
    include_self: bool,
    remembered: Option<&Remembered>,
    arena: Option<&ArenaView>,
) -> PyResult<observe::Options> {
    Ok(observe::Options {
        scope: scope.parse().map_err(to_py)?,
        kinds: kinds.map(str::parse::<KindSet>).transpose().map_err(to_py)?,
        roots,
        lock_files,
        threads,
        include_self,
        remembered: remembered.map(|r| r.0.clone()).unwrap_or_default(),
        arena: arena.map(|a| Arc::clone(&a.0)),
        ..observe::Options::default()
    })
}

fn rules(text: Option<&str>) -> PyResult<Rules> {
    let parse = |text| Rules::parse(text, Path::new("allow rules"), leakcheck::judge::allow::today());
    text.map_or(Ok(Rules::default()), |text| parse(text).map_err(to_py))
}

fn json(value: &impl serde::Serialize) -> PyResult<String> {
    serde_json::to_string(value).map_err(|e| NativeError::new_err(format!("cannot write JSON: {e}")))
}

fn to_object<'py>(py: Python<'py>, value: &impl serde::Serialize) -> PyResult<Bound<'py, PyAny>> {
    py.import("json")?.call_method1("loads", (json(value)?,))
}

/// One observation; immutable. It keeps the observed arena for later looks.
#[pyclass(frozen, module = "leakcheck._native")]
struct Snapshot(leakcheck::Snapshot, Option<Arc<ObservedArena>>);

fn loaded(snapshot: leakcheck::Snapshot) -> Snapshot {
    Snapshot(snapshot, None)
}

#[pymethods]
impl Snapshot {
    #[getter]
    fn scope(&self) -> String {
        self.0.scope.to_string()
    }

    #[getter]
    fn kinds(&self) -> Vec<&'static str> {
        self.0.kinds.iter().map(leakcheck::Kind::as_str).collect()
    }

    #[getter]
    fn boot_id(&self) -> &str {
        &self.0.boot_id
    }

    #[getter]
    fn taken_ns(&self) -> i64 {
        self.0.taken_ns
    }

    #[getter]
    fn took_ns(&self) -> u64 {
        self.0.took_ns
    }

    #[getter]
    fn coverage(&self, py: Python<'_>) -> PyResult<Py<PyDict>> {
        let dict = PyDict::new(py);
        for (kind, coverage) in &self.0.coverage.0 {
            dict.set_item(kind.as_str(), (to_object(py, &coverage.level)?, &coverage.reason))?;
        }
        Ok(dict.unbind())
    }

    #[getter]
    fn unreadable(&self) -> Vec<(u32, String)> {
        self.0.unreadable.iter().map(|u| (u.pid, u.what.clone())).collect()
    }

    #[getter]
    fn gauges(&self) -> std::collections::BTreeMap<String, i64> {
        self.0.gauges.clone()
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn count(&self, kind: &str) -> PyResult<usize> {
        Ok(self.0.count(kind.parse().map_err(to_py)?))
    }

    #[pyo3(signature = (kind=None))]
    fn resources<'py>(&self, py: Python<'py>, kind: Option<&str>) -> PyResult<Bound<'py, PyAny>> {
        to_object(py, &self.0.resources(kind.map(str::parse).transpose().map_err(to_py)?))
    }

    fn to_json(&self, py: Python<'_>) -> PyResult<String> {
        safely(py, || self.0.to_json())
    }

    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        safely(py, || self.0.save(&path))
    }

    #[staticmethod]
    fn from_json(text: &str) -> PyResult<Self> {
        leakcheck::Snapshot::from_json(text, Path::new("snapshot")).map(loaded).map_err(to_py)
    }

    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        safely(py, || leakcheck::Snapshot::load(&path)).map(loaded)
    }
}

/// What looks remember of each other.
#[pyclass(frozen, module = "leakcheck._native")]
struct Remembered(observe::Remembered, guard::KeptWatch);

#[pymethods]
impl Remembered {
    #[new]
    fn new() -> Self {
        Remembered(observe::Remembered::watching(), guard::KeptWatch::default())
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.1.close());
    }
}

/// A run: baseline and event sources at construction, settle and verdict at the end.
#[pyclass(frozen, module = "leakcheck._native")]
struct Guard(Mutex<Option<guard::Guard>>);

impl Guard {
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&mut guard::Guard) -> leakcheck::Result<T> + Send,
    ) -> PyResult<T> {
        safely(py, || match self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(guard) => f(guard),
            None => Err(Error::Usage("this guard was abandoned: start a new one".to_owned())),
        })
    }
}

#[pymethods]
impl Guard {
    #[new]
    #[pyo3(signature = (*, scope="host", kinds=None, roots=None, lock_files=Vec::new(), allow=None, settle_ms=500,
        include_self=false, attributed_only=false, remembered=None, arena=None))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of the Python constructor")]
    fn new(
        py: Python<'_>,
        scope: &str,
        kinds: Option<&str>,
        roots: Option<Vec<PathBuf>>,
        lock_files: Vec<PathBuf>,
        allow: Option<&str>,
        settle_ms: u64,
        include_self: bool,
        attributed_only: bool,
        remembered: Option<&Remembered>,
        arena: Option<&ArenaView>,
    ) -> PyResult<Self> {
        let options = guard::Options {
            observe: options(scope, kinds, roots, lock_files, 0, include_self, remembered, arena)?,
            rules: rules(allow)?,
            policy: Policy::new(Duration::from_millis(settle_ms)),
            attributed_only,
            waiting: None,
            kept: remembered.map(|r| r.1.clone()),
        };
        safely(py, || guard::Guard::begin(options)).map(|g| Guard(Mutex::new(Some(g))))
    }

    #[getter]
    fn token(&self, py: Python<'_>) -> PyResult<(String, String)> {
        self.with(py, |run| Ok((run.token().0.to_owned(), run.token().1.to_owned())))
    }

    fn allow(&self, py: Python<'_>, text: &str) -> PyResult<()> {
        let more = rules(Some(text))?;
        self.with(py, |run| {
            run.allow(more);
            Ok(())
        })
    }

    #[pyo3(signature = (argv=None, exit=None))]
    fn end(&self, py: Python<'_>, argv: Option<Vec<String>>, exit: Option<i32>) -> PyResult<String> {
        let command = argv.map(|argv| Command { argv, exit });
        json(&self.with(py, |run| run.end(command))?)
    }

    fn forget(&self, py: Python<'_>, descriptors: Vec<u32>) -> PyResult<()> {
        self.with(py, |run| {
            run.forget(&descriptors);
            Ok(())
        })
    }

    fn end_at_once(&self, py: Python<'_>) -> PyResult<Option<String>> {
        self.with(py, guard::Guard::end_at_once)?.as_ref().map(json).transpose()
    }

    fn recovered(&self, py: Python<'_>) -> PyResult<String> {
        json(&self.with(py, guard::Guard::recovered)?)
    }

    fn abandon(&self, py: Python<'_>) {
        py.detach(|| drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take()));
    }
}

#[pyfunction]
#[pyo3(signature = (*, scope="host", kinds=None, roots=None, lock_files=Vec::new(), threads=0, include_self=false,
    remembered=None, arena=None))]
#[allow(clippy::too_many_arguments, reason = "keyword arguments of the Python function")]
fn snapshot(
    py: Python<'_>,
    scope: &str,
    kinds: Option<&str>,
    roots: Option<Vec<PathBuf>>,
    lock_files: Vec<PathBuf>,
    threads: usize,
    include_self: bool,
    remembered: Option<&Remembered>,
    arena: Option<&ArenaView>,
) -> PyResult<Snapshot> {
    let mut options = options(scope, kinds, roots, lock_files, threads, include_self, remembered, arena)?;
    if remembered.is_none() {
        options.remembered = observe::Remembered::nothing();
    }
    let look = safely(py, || observe::snapshot(&options))?;
    Ok(Snapshot(look, options.arena))
}

#[pyfunction]
#[pyo3(signature = (before, after, *, allow=None))]
fn diff(py: Python<'_>, before: &Snapshot, after: &Snapshot, allow: Option<&str>) -> PyResult<String> {
    let rules = rules(allow)?;
    let arena = after.1.as_deref().or(before.1.as_deref());
    json(&safely(py, || guard::compare(&before.0, &after.0, &rules, arena))?)
}

#[pyfunction]
#[pyo3(signature = (before, *, first=None, allow=None, settle_ms=500, include_self=false, attributed_only=false,
    waiting=None))]
#[allow(clippy::too_many_arguments, reason = "keyword arguments of the Python function")]
fn settle(
    py: Python<'_>,
    before: &Snapshot,
    first: Option<&Snapshot>,
    allow: Option<&str>,
    settle_ms: u64,
    include_self: bool,
    attributed_only: bool,
    waiting: Option<Py<PyAny>>,
) -> PyResult<String> {
    let waiting = waiting.map(|call| {
        guard::Waiting(Arc::new(move || {
            Python::attach(|py| call.call0(py).map_or_else(|e| e.write_unraisable(py, None), drop))
        }))
    });
    let options = guard::Options {
        observe: observe::Options { arena: before.1.clone(), ..observe::Options::like(&before.0, include_self) },
        rules: rules(allow)?,
        policy: Policy::new(Duration::from_millis(settle_ms)),
        attributed_only,
        waiting,
        kept: None,
    };
    json(&safely(py, || guard::verify_none(&before.0, &first.unwrap_or(before).0, &options))?)
}

#[pyfunction]
#[pyo3(signature = (what, path, *, most=leakcheck::persist::LARGEST, own=false))]
fn read_input(py: Python<'_>, what: &str, path: PathBuf, most: u64, own: bool) -> PyResult<String> {
    let read = || leakcheck::persist::read_input(&path, most, own);
    py.detach(read).map_err(|why| UsageError::new_err(format!("cannot read {what} {}: {why}", path.display())))
}

#[pyfunction]
fn harmless(text: &str) -> std::borrow::Cow<'_, str> {
    leakcheck::text::harmless(text)
}

#[pyfunction]
fn parse_plan(line: &Bound<'_, PyString>) -> PyResult<(String, String, Vec<String>)> {
    let refused = |why: String| UsageError::new_err(format!("plan {line:?}: {why}"));
    let text = line.to_str().map_err(|_| refused("not UTF-8; give KIND[:ARGUMENT][,FLAG]".to_owned()))?;
    let plan: leakcheck_plan::Plan = text.parse().map_err(|e: leakcheck_plan::ParseError| refused(e.to_string()))?;
    Ok((plan.kind().to_owned(), plan.argument().to_owned(), plan.flags().to_vec()))
}

#[pyfunction]
fn check_allow(text: &str, path: PathBuf) -> PyResult<usize> {
    let rules = Rules::parse(text, &path, leakcheck::judge::allow::today()).map_err(to_py)?;
    Ok(rules.rules.len())
}

/// The type of what is at a path, without waiting for a file system: `nothing`, `directory`, `other` or `hidden`.
#[pyfunction]
fn path_class(py: Python<'_>, path: PathBuf) -> &'static str {
    match py.detach(|| observe::at(&path)) {
        observe::At::Nothing => "nothing",
        observe::At::Directory => "directory",
        observe::At::Other => "other",
        observe::At::Hidden => "hidden",
    }
}

#[pyfunction]
#[pyo3(signature = (*, scope="host", kinds=None, roots=None))]
fn doctor(py: Python<'_>, scope: &str, kinds: Option<&str>, roots: Option<Vec<PathBuf>>) -> PyResult<String> {
    let options = options(scope, kinds, roots, Vec::new(), 0, false, None, None)?;
    json(&safely(py, || leakcheck::doctor::doctor(&options))?)
}

#[pyfunction]
#[pyo3(signature = (report, path, *, apply=false))]
fn reap(py: Python<'_>, report: &str, path: PathBuf, apply: bool) -> PyResult<String> {
    let reap = || leakcheck::reap::reap(&leakcheck::reap::load(report, &path)?, apply);
    json(&safely(py, reap)?)
}

/// Native core of leakcheck: observe and judge.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::{
        ArenaView, Guard, Remembered, Settings, Snapshot, check_allow, diff, doctor, environment, harmless, parse_plan,
        path_class, read_input, reap, settle, snapshot, stack::build_id, stack::walk_stack,
    };
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(m: &Bound<'_, PyModule>) -> PyResult<()> {
        // Import both now, while descriptors are available: errors come from the first, and the second builds objects.
        m.py().import("leakcheck.errors")?;
        m.py().import("json")?;
        // A panic is reported as an error, once and in one line.
        if std::env::var_os("LEAKCHECK_DEBUG").is_none() {
            std::panic::set_hook(Box::new(|_| ()));
        }
        m.add("__version__", env!("CARGO_PKG_VERSION"))?;
        m.add("KINDS", pyo3::types::PyTuple::new(m.py(), leakcheck::Kind::ALL.map(leakcheck::Kind::as_str))?)?;
        m.add("OPERATIONS", pyo3::types::PyTuple::new(m.py(), leakcheck_plan::OPERATIONS)?)?;
        m.add("DEFAULT_ROOTS", pyo3::types::PyTuple::new(m.py(), leakcheck::observe::DEFAULT_ROOTS)?)
    }
}
