//! An arena's descriptors, received from its creator: copied, so that either side can close its own.

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;

use crate::{UsageError, safely};

/// The descriptors and paths through which an arena is observed.
#[pyclass(frozen, module = "leakcheck._native")]
pub(crate) struct ArenaView(pub(crate) Arc<leakcheck::ObservedArena>);

#[pymethods]
impl ArenaView {
    #[new]
    #[pyo3(signature = (proc, layers, roots, cgroups, not_covered=Vec::new(), bound=Vec::new()))]
    fn new(
        py: Python<'_>,
        proc: RawFd,
        layers: Vec<(PathBuf, RawFd, PathBuf)>,
        roots: Vec<(PathBuf, RawFd)>,
        cgroups: Vec<(String, PathBuf)>,
        not_covered: Vec<String>,
        bound: Vec<(PathBuf, PathBuf)>,
    ) -> PyResult<Self> {
        let layer = |(path, upper, lower)| Ok(leakcheck::Layer { path, upper: copy(upper)?, lower });
        let layers = layers.into_iter().map(layer).collect::<PyResult<_>>()?;
        let roots = roots.into_iter().map(|(path, fd)| Ok((path, copy(fd)?))).collect::<PyResult<_>>()?;
        let view = leakcheck::ArenaView { proc: copy(proc)?, layers, roots, cgroups, not_covered };
        // Bind mounts may have any number of files.
        let arena = safely(py, || leakcheck::ObservedArena::new(view)?.with_bound(bound))?;
        Ok(ArenaView(Arc::new(arena)))
    }
}

/// The environment of a process of this machine, or of an arena, by its process id there.
#[pyfunction]
#[pyo3(signature = (pid, *, arena=None))]
pub(crate) fn environment(py: Python<'_>, pid: u32, arena: Option<&ArenaView>) -> Option<Vec<u8>> {
    let arena = arena.map(|arena| Arc::clone(&arena.0));
    py.detach(|| leakcheck::observe::environment(pid, arena.as_deref().map(|arena| &arena.view)))
}

/// Settings that are read in advance, for the next guard of an arena.
#[pyclass(frozen, module = "leakcheck._native")]
pub(crate) struct Settings {
    _kept: Arc<leakcheck::observe::OpenSettings>,
}

#[pymethods]
impl Settings {
    #[new]
    fn new(py: Python<'_>) -> Self {
        Settings { _kept: py.detach(leakcheck::observe::prepare_settings) }
    }
}

#[allow(unsafe_code)]
fn copy(fd: RawFd) -> PyResult<OwnedFd> {
    if fd < 0 {
        return Err(UsageError::new_err(format!("{fd} is not a descriptor")));
    }
    // SAFETY: borrowed for one fcntl(F_DUPFD_CLOEXEC), which fails with EBADF if nothing is open there.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    borrowed.try_clone_to_owned().map_err(PyErr::from)
}
