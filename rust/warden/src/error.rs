//! Errors with the operation and the path.

leakcheck_sys::doing!(std::io::Error);
