//! The call stack of a stopped x86-64 process, with function names, from its registers, stack bytes and programs.
//!
//! Everything here is input of the process's: nothing is trusted, everything is bounded.

#![forbid(unsafe_code)]

mod go;
mod program;

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{FrameAddress, Unwinder as _};

use object::read::elf::ElfFile64;
use object::{LittleEndian, Object as _};

use program::Program;

/// Frames of a stack that are told.
const MOST_FRAMES: usize = 64;

/// The registers by which a stack is walked.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    /// `rip`.
    pub pc: u64,
    /// `rsp`.
    pub sp: u64,
    /// `rbp`.
    pub fp: u64,
}

/// A mapping of a process's that may be executed.
#[derive(Clone, Copy, Debug)]
pub struct Mapping<'a> {
    /// Its first address.
    pub start: u64,
    /// The address behind its last one.
    pub end: u64,
    /// Where it begins in its file.
    pub offset: u64,
    /// The file's content; empty if it is not known.
    pub file: &'a [u8],
    /// That of its separate debug file; empty if there is none.
    pub debug: &'a [u8],
}

/// A function that has not returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The mapping in which it is; none if the address is in none.
    pub mapping: Option<usize>,
    /// The address in it, as the file's own tables have it; without a mapping, as the process has it.
    pub address: u64,
    /// Its name, if a table of the file has it.
    pub function: Option<String>,
}

/// The number by which a program's separate debug file is found, in hexadecimal (`NT_GNU_BUILD_ID`).
#[must_use]
pub fn build_id(file: &[u8]) -> Option<String> {
    let file = ElfFile64::<LittleEndian>::parse(file).ok()?;
    let id = file.build_id().ok()??;
    // A hash of some kind.
    (8..=64).contains(&id.len()).then(|| id.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Walks the stack, from the innermost function outwards; `stack` are the bytes from `base` on.
#[must_use]
pub fn walk(registers: Registers, base: u64, stack: &[u8], mappings: &[Mapping<'_>]) -> Vec<Frame> {
    let mut programs: HashMap<usize, Option<Program<'_>>> = HashMap::new();
    let mut unwinder = UnwinderX86_64::new();
    let mut read = |address: u64| {
        let at = usize::try_from(address.checked_sub(base).ok_or(())?).map_err(drop)?;
        stack.get(at..).and_then(<[u8]>::first_chunk).map(|bytes| u64::from_le_bytes(*bytes)).ok_or(())
    };
    let mut cache = CacheX86_64::<_>::new();
    let mut registers = UnwindRegsX86_64::new(registers.pc, registers.sp, registers.fp);
    let mut frames = Vec::new();
    let mut address = Some(FrameAddress::from_instruction_pointer(registers.ip()));
    while let Some(here) = address
        && frames.len() < MOST_FRAMES
    {
        // A return address may be that of the next function.
        let looked_up = here.address_for_lookup();
        let mapping = mappings.iter().position(|one| (one.start..one.end).contains(&looked_up));
        // Of the many that a process can map, the stack leads into a few.
        let program = mapping.and_then(|at| match programs.entry(at) {
            Entry::Occupied(known) => known.into_mut().as_ref(),
            Entry::Vacant(new) => {
                let program = Program::of(&mappings[at]);
                if let Some(module) = program.as_ref().and_then(Program::module) {
                    unwinder.add_module(module);
                }
                new.insert(program).as_ref()
            }
        });
        let inside = program.map(|program| program.inside(looked_up));
        let go = program.zip(inside).and_then(|(program, inside)| program.go_function(inside));
        let function = go.as_ref().map(|go| go.name.clone());
        let function = function.or_else(|| program.zip(inside).and_then(|(program, inside)| program.function(inside)));
        frames.push(Frame { mapping, address: inside.unwrap_or(looked_up), function });
        if mapping.is_none() || go.as_ref().is_some_and(go::Function::is_first) {
            break;
        }
        let sp = registers.sp();
        let outer = match go.and_then(|go| go.frame) {
            Some(size) => go::outer(&mut registers, size, &mut read),
            None => unwinder.unwind_frame(here, &mut registers, &mut cache, &mut read).ok().flatten(),
        };
        // A stack that does not get shorter is a circle.
        address = outer.filter(|_| registers.sp() > sp).and_then(FrameAddress::from_return_address);
    }
    frames
}
