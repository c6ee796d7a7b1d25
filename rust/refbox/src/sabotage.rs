//! Protections that a build with debug assertions, which no release is, can lack, one at a time: each campaign of leakcheck has to notice.

/// Whether `$REFBOX_SABOTAGE` removes this protection.
pub(crate) fn removed(protection: &str) -> bool {
    cfg!(debug_assertions) && std::env::var_os("REFBOX_SABOTAGE").is_some_and(|name| name == protection)
}
