//! Call stacks.

use leakcheck_stack::{Mapping, Registers, walk};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

/// The mapping, the address in its file, and the function's name.
type Frame = (Option<usize>, u64, Option<String>);

#[pyfunction]
#[allow(clippy::needless_pass_by_value, reason = "pyo3 converts it")]
pub(crate) fn build_id(py: Python<'_>, file: PyBackedBytes) -> PyResult<Option<String>> {
    crate::safely(py, || Ok(leakcheck_stack::build_id(&file)))
}

#[pyfunction]
#[allow(clippy::needless_pass_by_value, reason = "pyo3 converts them")]
pub(crate) fn walk_stack(
    py: Python<'_>,
    registers: (u64, u64, u64),
    stack: PyBackedBytes,
    mappings: Vec<(u64, u64, u64, PyBackedBytes, PyBackedBytes)>,
) -> PyResult<Vec<Frame>> {
    let (pc, sp, fp) = registers;
    crate::safely(py, || {
        let mappings: Vec<Mapping<'_>> = mappings
            .iter()
            .map(|(start, end, offset, file, debug)| Mapping { start: *start, end: *end, offset: *offset, file, debug })
            .collect();
        let frames = walk(Registers { pc, sp, fp }, sp, &stack, &mappings);
        Ok(frames.into_iter().map(|frame| (frame.mapping, frame.address, frame.function)).collect())
    })
}
