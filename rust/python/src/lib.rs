//! The binding decides nothing: convert, call, convert.
use pyo3::prelude::*;

/// Native core of leakcheck.
#[pymodule]
mod _native {
    #[pymodule_export]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
