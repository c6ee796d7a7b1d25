//! The filter of a traced command: calls that may be points stop, all others run at full speed.

use std::io;

use leakcheck_sys::trace::{Instruction, add_filter};

use super::x86_64::{EVERY, HIDES, NATIVE, ROWS, When, X32};

/// `BPF_LD | BPF_W | BPF_ABS`.
const LOAD: u16 = 0x20;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
const EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JSET | BPF_K`.
const ANY_BIT: u16 = 0x45;
/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;
/// `SECCOMP_RET_ALLOW` and `SECCOMP_RET_TRACE`.
const ALLOW: Instruction = (RETURN, 0, 0, 0x7fff_0000);
const TRACE: Instruction = (RETURN, 0, 0, 0x7ff0_0000);
/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Adds the filter to this process, permanently. From then on it must be traced: points fail with ENOSYS otherwise.
/// With `every`, calls stop that are points only if every one is asked for.
pub(crate) fn install(every: bool) -> io::Result<()> {
    add_filter(&program(every))
}

/// Calls of other conventions stop always: they are rare.
fn program(every: bool) -> Vec<Instruction> {
    let mut all =
        vec![(LOAD, 0, 0, ARCH), (EQUAL, 1, 0, NATIVE), TRACE, (LOAD, 0, 0, NUMBER), (ANY_BIT, 0, 1, X32), TRACE];
    let hides = HIDES.iter().map(|(number, _, when, _)| (*number, *when));
    let mut calls: Vec<(u32, When)> = hides.chain(ROWS.iter().map(|row| (row.number, row.when))).collect();
    if every {
        calls.extend(EVERY.iter().map(|row| (row.number, row.when)));
    }
    for (number, when) in calls {
        let test = match when {
            When::Always => vec![TRACE],
            When::AnyBit(at, bits) => vec![argument(at), (ANY_BIT, 0, 1, bits), TRACE, ALLOW],
            When::NoBit(at, bits) => vec![argument(at), (ANY_BIT, 1, 0, bits), TRACE, ALLOW],
            When::OneOf(at, values) => {
                let each = values.iter().flat_map(|value| [(EQUAL, 0, 1, *value), TRACE]);
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
