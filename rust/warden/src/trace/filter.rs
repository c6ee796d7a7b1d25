//! The filter of a traced command: calls that may be points stop, all others run at full speed.

use std::io;
use std::os::fd::OwnedFd;

use leakcheck_sys::notify::add_reporting_filter;
use leakcheck_sys::trace::{Instruction, add_filter};

use super::x86_64::{EVERY, HIDES, NATIVE, REPORTED, ROWS, When, X32};

/// `BPF_LD | BPF_W | BPF_ABS`.
const LOAD: u16 = 0x20;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
const EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JSET | BPF_K`.
const ANY_BIT: u16 = 0x45;
/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;
/// `SECCOMP_RET_ALLOW`, `SECCOMP_RET_TRACE` and `SECCOMP_RET_USER_NOTIF`.
const ALLOW: Instruction = (RETURN, 0, 0, 0x7fff_0000);
const TRACE: u32 = 0x7ff0_0000;
const REPORT: u32 = 0x7fc0_0000;
/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Adds the filter to this process, permanently. From then on it must be traced: points fail with ENOSYS otherwise.
/// With `every`, calls stop that are points only if every one is asked for.
pub(crate) fn install(every: bool) -> io::Result<()> {
    add_filter(&program(TRACE, HIDES.iter().map(|(number, _, when, _)| (*number, *when)), every))
}

/// Adds a filter that reports the points; they wait until what comes to the listener is answered.
pub(crate) fn report(every: bool) -> io::Result<OwnedFd> {
    add_reporting_filter(&program(REPORT, REPORTED.iter().copied(), every))
}

/// Whether an instruction of a filter lets a tracer see calls.
pub(super) fn is_for_tracer((code, _, _, value): Instruction) -> bool {
    code == RETURN && value & 0xffff_0000 == TRACE
}

/// Calls of other conventions stop always: they are rare.
fn program(stop: u32, besides: impl Iterator<Item = (u32, When)>, every: bool) -> Vec<Instruction> {
    let stop: Instruction = (RETURN, 0, 0, stop);
    let mut all =
        vec![(LOAD, 0, 0, ARCH), (EQUAL, 1, 0, NATIVE), stop, (LOAD, 0, 0, NUMBER), (ANY_BIT, 0, 1, X32), stop];
    let rows = ROWS.iter().chain(if every { EVERY } else { &[] });
    for (number, when) in besides.chain(rows.map(|row| (row.number, row.when))) {
        let test = match when {
            When::Always => vec![stop],
            When::AnyBit(at, bits) => vec![argument(at), (ANY_BIT, 0, 1, bits), stop, ALLOW],
            When::NoBit(at, bits) => vec![argument(at), (ANY_BIT, 1, 0, bits), stop, ALLOW],
            When::OneOf(at, values) => {
                let each = values.iter().flat_map(|value| [(EQUAL, 0, 1, *value), stop]);
                std::iter::once(argument(at)).chain(each).chain([ALLOW]).collect()
            }
        };
        let over = u8::try_from(test.len()).unwrap_or(u8::MAX);
        all.push((EQUAL, 0, over, number));
        all.extend(test);
    }
    all.push(ALLOW);
    all
}

/// The low half of an argument.
fn argument(at: usize) -> Instruction {
    (LOAD, 0, 0, ARGUMENTS + 8 * u32::try_from(at).unwrap_or_default())
}
