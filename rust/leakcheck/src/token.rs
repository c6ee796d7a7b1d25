//! The mark that a run's processes carry.

/// Environment variable that marks the processes of a run.
pub const TOKEN_NAME: &str = "LEAKCHECK_RUN";

/// A value that nobody can guess and no two runs share.
pub(crate) fn random_token() -> String {
    let mut bytes = [0u8; 16];
    // The kernel's random pool is ready long before any program of ours runs; a short read only shortens the token.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK);
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
