//! Proves that a Linux sandbox leaves nothing behind.
