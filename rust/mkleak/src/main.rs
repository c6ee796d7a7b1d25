//! Plants exactly one named leak.
fn main() {}
