//! Which line a guarded test that leaked names. One test: a panic hook is the whole process's.

use std::fs::File;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leakcheck::testing::Options;

/// Runs `test`, which panics, and returns the place of the panic and its message.
fn panic_of(test: impl FnOnce()) -> (String, String) {
    let seen = Arc::new(Mutex::new(None));
    let into = Arc::clone(&seen);
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let text = info.payload().downcast_ref::<String>().cloned().unwrap_or_default();
        *into.lock().unwrap() = Some((place, text));
    }));
    let result = panic::catch_unwind(AssertUnwindSafe(test));
    panic::set_hook(before);
    assert!(result.is_err(), "it did not panic");
    let found = seen.lock().unwrap().take();
    found.expect("the panic called no hook")
}

#[test]
fn an_assertion_panics_at_the_line_that_calls_it_and_a_drop_names_the_line_of_the_guard() {
    let options = || Options::default().settle(Duration::from_millis(20));

    options().guard().assert_clean();

    let mut lines = (0, 0);
    let (place, text) = panic_of(|| {
        #[rustfmt::skip]
        let guard = { lines.0 = line!(); options().guard() };
        std::mem::forget(File::open("/dev/null").unwrap());
        #[rustfmt::skip]
        { lines.1 = line!(); guard.assert_clean() };
    });
    assert!(place.starts_with(&format!("{}:{}:", file!(), lines.1)), "{place}");
    assert!(text.contains("/dev/null"), "{text}");
    assert!(text.contains(&format!("guarded from {}:{}:", file!(), lines.0)), "{text}");

    let (place, text) = panic_of(|| {
        #[rustfmt::skip]
        let _guard = { lines.0 = line!(); options().guard() };
        std::mem::forget(File::open("/dev/null").unwrap());
    });
    assert!(place.contains("src/testing.rs:"), "{place}");
    assert!(text.contains(&format!("guarded from {}:{}:", file!(), lines.0)), "{text}");

    let (place, text) = panic_of(|| {
        #[rustfmt::skip]
        { lines.0 = line!(); leakcheck::testing::verify_none(|| std::mem::forget(File::open("/dev/null").unwrap())) };
    });
    assert!(text.contains("/dev/null"), "{text}");
    assert!(place.starts_with(&format!("{}:{}:", file!(), lines.0)), "{place}");
}
