//! The behaviours in Rust: `suite BEHAVIOUR [NUMBER]`. Each one ends by itself, whatever limit fails.

use std::hint::black_box;
use std::io::Write;
use std::time::{Duration, Instant};

extern "C" {
    fn signal(number: i32, handler: usize) -> usize;
    fn setrlimit(resource: i32, limit: *const [u64; 2]) -> i32;
}

fn rest(seconds: u64) {
    let until = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < until {
        std::thread::sleep((until - Instant::now()).min(Duration::from_secs(1)));
    }
}

fn burn(time: Duration) {
    let began = Instant::now();
    let mut n = 0u64;
    while began.elapsed() < time {
        n = black_box(n + 1);
    }
}

fn touch(bytes: usize) {
    let held: Vec<Vec<u8>> = (0..bytes >> 20).map(|_| black_box(vec![1u8; 1 << 20])).collect();
    black_box(held);
}

fn write_out(mut bytes: usize) {
    let block = [b'x'; 65536];
    let mut out = std::io::stdout();
    while bytes > 0 {
        let now = bytes.min(block.len());
        out.write_all(&block[..now]).expect("write");
        bytes -= now;
    }
    out.flush().expect("flush");
}

fn litter() {
    for number in 0..20 {
        let path = format!("/tmp/leakcheck-litter-{}-{number}", std::process::id());
        if std::fs::write(path, "litter").is_err() {
            return;
        }
    }
}

fn fd_hog(most: usize) {
    let held: Vec<_> = (0..most).map_while(|_| std::fs::File::open("/dev/null").ok()).collect();
    std::mem::forget(held);
}

fn no_core() {
    // RLIMIT_CORE is 4 (getrlimit(2)).
    unsafe { setrlimit(4, &[0, 0]) };
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number: u64 = arguments.get(2).map_or(0, |text| text.parse().expect("a number"));
    match arguments[1].as_str() {
        "hello" => println!("hello"),
        "cpu" => burn(Duration::from_millis(number)),
        "memory" | "allocate" => touch(number as usize),
        "output" | "flood" => write_out(number as usize),
        "spin" => burn(Duration::from_secs(number)),
        "sleep" => rest(number),
        "ignore_sigterm" => {
            // SIG_IGN is 1 (signal(2)).
            unsafe { signal(15, 1) };
            println!("ready");
            rest(number);
        }
        "exit" => std::process::exit(number as i32),
        "segv" => {
            no_core();
            unsafe { std::ptr::write_volatile(8 as *mut u8, 1) };
        }
        "abort" => {
            no_core();
            std::process::abort();
        }
        "exception" => panic!("nobody catches it"),
        "temp_litter" => litter(),
        "fd_hog" => fd_hog(number as usize),
        other => {
            eprintln!("no behaviour {other}");
            std::process::exit(64);
        }
    }
}
