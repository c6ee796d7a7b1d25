//! What a snapshot costs apart from the machine that it looks at: parsing, identity order, comparison, the saved form.
//! `cargo bench -p leakcheck-benches`; the side-by-side runs against other tools are in `benches/run.py`.

use divan::{Bencher, black_box};
use leakcheck::judge::diff::diff;
use leakcheck::parse;
use leakcheck::resource::{Fd, Process};
use leakcheck::{Kind, Scope, Snapshot};

const PROCESSES: u32 = 1000;
const FDS_EACH: u32 = 15;
const STAT: &[u8] =
    b"5648 (head) R 5646 5646 4201 0 -1 4194304 103 0 0 0 7 8 0 0 20 0 1 0 71831 2998272 415 18446744073709551615 \
    94017488793600 94017488817705 140735719213536 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 94017488833552 94017488835168 \
    94018296213504 140735719217851 140735719217870 140735719217870 140735719219178 0\n";
const FDINFO: &[u8] =
    b"pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t1057\neventfd-count:                0\neventfd-id: 57\neventfd-semaphore: 0\n";

fn main() {
    divan::main();
}

/// A snapshot of processes with files, sockets, pipes and anonymous inodes in equal parts.
fn snapshot() -> Snapshot {
    let kinds = [Kind::Process, Kind::Fd].into_iter().collect();
    let mut out = Snapshot::empty(Scope::Host, kinds);
    for pid in 1000..1000 + PROCESSES {
        let start = u64::from(pid) * 7;
        out.processes.push(Process { pid, start, ppid: 1, state: 'S', pgrp: 1, session: 1, comm: b"python3".into() });
        out.fds.extend((0..FDS_EACH).map(|fd| descriptor(pid, start, fd)));
    }
    out
}

fn descriptor(pid: u32, start: u64, fd: u32) -> Fd {
    let number = u64::from(pid) << 8 | u64::from(fd);
    let target = match fd % 4 {
        0 => format!("/var/lib/app/data-{number}"),
        1 => format!("socket:[{number}]"),
        2 => format!("pipe:[{number}]"),
        _ => "anon_inode:[eventfd]".to_owned(),
    };
    let file = fd.is_multiple_of(4);
    Fd {
        pid,
        start,
        table: pid,
        fd,
        dev: if file { 8 << 32 } else { 0 },
        ino: if file { number } else { 0 },
        serial: (fd % 4 == 3).then_some(number),
        target: target.into_bytes().into(),
        mount: file.then_some(77),
        in_flight: 0,
    }
}

#[divan::bench]
fn stat_of_one_process() {
    let _ = black_box(parse::stat::parse(black_box(STAT)));
}

#[divan::bench]
fn fdinfo_of_one_eventfd() {
    let _ = black_box(parse::fdinfo::parse(black_box(FDINFO)));
}

#[divan::bench]
fn diff_of_two_equal_snapshots_of_15_000_fds(bencher: Bencher<'_, '_>) {
    let (before, after) = (snapshot(), snapshot());
    bencher.bench_local(|| diff(black_box(&before), black_box(&after)));
}

#[divan::bench]
fn diff_of_two_snapshots_with_nothing_in_common(bencher: Bencher<'_, '_>) {
    let (before, mut after) = (snapshot(), snapshot());
    after.processes.iter_mut().for_each(|p| p.start += 1);
    after.fds.iter_mut().for_each(|fd| fd.start += 1);
    bencher.bench_local(|| diff(black_box(&before), black_box(&after)));
}

#[divan::bench]
fn normalise_what_is_in_order(bencher: Bencher<'_, '_>) {
    bencher.with_inputs(snapshot).bench_local_refs(|s| s.normalise());
}

#[divan::bench]
fn normalise_what_is_reversed(bencher: Bencher<'_, '_>) {
    let reversed = || {
        let mut s = snapshot();
        s.fds.reverse();
        s
    };
    bencher.with_inputs(reversed).bench_local_refs(|s| s.normalise());
}

#[divan::bench]
fn to_json(bencher: Bencher<'_, '_>) {
    let s = snapshot();
    bencher.bench_local(|| black_box(&s).to_json());
}
