//! Whatever a process has on its stack and in its program, a walk ends, and tells what it knows.

use leakcheck_stack::{Mapping, Registers, walk};
use proptest::prelude::*;

const START: u64 = 0x40_0000;

fn own_program() -> Vec<u8> {
    std::fs::read("/proc/self/exe").unwrap()
}

fn mapping(file: &[u8]) -> Mapping<'_> {
    Mapping { start: START, end: START + 0x1000_0000, offset: 0, file, debug: b"" }
}

#[test]
fn a_stack_that_leads_back_to_itself_ends() {
    // Each frame pointer leads to the next lower one, and the return address into the mapping.
    let words: Vec<u64> =
        (0..512).map(|n| if n % 2 == 0 { 0x1000 + 8 * ((n + 510) % 512) } else { START + 16 }).collect();
    let stack: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let found = walk(Registers { pc: START, sp: 0x1000, fp: 0x1000 }, 0x1000, &stack, &[mapping(b"")]);
    assert!(!found.is_empty() && found.len() <= 64);
    assert!(found.iter().all(|frame| frame.function.is_none()));
}

#[test]
fn an_address_in_no_mapping_is_told_as_it_is() {
    let found = walk(Registers { pc: 7, sp: 0, fp: 0 }, 0, &[], &[]);
    assert_eq!(found.iter().map(|frame| (frame.mapping, frame.address)).collect::<Vec<_>>(), [(None, 7)]);
}

proptest! {
    #[test]
    fn neither_registers_nor_stacks_nor_programs_that_are_damaged_break_a_walk(
        registers in (any::<u64>(), any::<u64>(), any::<u64>()),
        inside in 0u64..0x10_0000,
        stack in proptest::collection::vec(any::<u8>(), 0..512),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..64),
        head in any::<bool>(),
    ) {
        let mut file = own_program();
        file.truncate(if head { 1 << 16 } else { file.len() });
        for (at, byte) in damage {
            // The header and the tables at its end lead to all else.
            let end = file.len();
            let at = if byte % 2 == 0 { at.index(4096.min(end)) } else { end - 1 - at.index((1 << 14).min(end)) };
            file[at] = byte;
        }
        let (pc, sp, fp) = registers;
        for registers in [Registers { pc, sp, fp }, Registers { pc: START + inside, sp: 0x1000, fp: 0x1010 }] {
            prop_assert!(walk(registers, 0x1000, &stack, &[mapping(&file)]).len() <= 64);
        }
    }
}
