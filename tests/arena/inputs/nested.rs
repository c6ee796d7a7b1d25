// A call three functions deep.
#[inline(never)]
fn innermost(path: &str) -> bool {
    std::hint::black_box(std::fs::create_dir(path)).is_err()
}

#[inline(never)]
fn outermost(path: &str) -> bool {
    !std::hint::black_box(innermost(path))
}

fn main() {
    std::process::exit(i32::from(!outermost("/tmp/nested")));
}
