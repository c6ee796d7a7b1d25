//! Proves that a Linux sandbox leaves nothing behind.

pub mod parse;
pub mod text;
