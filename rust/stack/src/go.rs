//! Go's own table of functions, which a stripped program has, too: `runtime.pclntab` (Go 1.16 and newer; runtime/symtab.go).
//!
//! It has the name of each function, and how far its stack pointer is from its caller's at each instruction.

use framehop::x86_64::UnwindRegsX86_64;
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget};

/// More of a name is not told.
const LONGEST: usize = 512;
/// A function has fewer changes of its stack pointer.
const MOST_STEPS: usize = 100_000;

pub(crate) struct Table<'a> {
    data: &'a [u8],
    /// Whether addresses are 32-bit offsets (Go 1.18) instead of absolute.
    offsets: bool,
    quantum: u64,
    count: usize,
    text: u64,
    names: usize,
    steps: usize,
    functions: usize,
}

pub(crate) struct Function {
    pub(crate) name: String,
    /// How many bytes its stack has at the instruction, above which the return address is.
    pub(crate) frame: Option<u64>,
}

impl Function {
    /// Whether it has no caller.
    pub(crate) fn is_first(&self) -> bool {
        matches!(self.name.as_str(), "runtime.goexit" | "runtime.mstart" | "runtime.rt0_go" | "runtime.morestack")
    }
}

impl<'a> Table<'a> {
    pub(crate) fn of(file: &ElfFile64<'a, LittleEndian>) -> Option<Self> {
        let section = file.sections().find(|one| one.name().is_ok_and(|name| name.ends_with(".gopclntab")))?;
        let data = section.data().ok()?;
        let offsets = match u32_at(data, 0)? {
            0xffff_fff0 | 0xffff_fff1 => true,
            0xffff_fffa => false,
            _ => return None,
        };
        if *data.get(7)? != 8 {
            return None;
        }
        let word = |n: usize| usize::try_from(u64_at(data, 8 + 8 * n)?).ok();
        let first = if offsets { 3 } else { 2 };
        let mut table = Table {
            data,
            offsets,
            quantum: u64::from(*data.get(6)?),
            count: word(0)?,
            text: 0,
            names: word(first)?,
            steps: word(first + 3)?,
            functions: word(first + 4)?,
        };
        if offsets {
            table.text = text_start(file, section.address(), word(2)? as u64, table.end()?)?;
        }
        Some(table)
    }

    /// Where the last function ends.
    fn end(&self) -> Option<u64> {
        self.start_of(self.count)
    }

    fn start_of(&self, number: usize) -> Option<u64> {
        if self.offsets {
            let at = self.functions.checked_add(number.checked_mul(8)?)?;
            return Some(self.text.wrapping_add(u64::from(u32_at(self.data, at)?)));
        }
        u64_at(self.data, self.functions.checked_add(number.checked_mul(16)?)?)
    }

    pub(crate) fn function(&self, address: u64) -> Option<Function> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.start_of(middle)? <= address { low = middle + 1 } else { high = middle }
        }
        let number = low.checked_sub(1)?;
        if address >= self.start_of(number + 1)? {
            return None;
        }
        let at = self.functions.checked_add(number.checked_mul(if self.offsets { 8 } else { 16 })?)?;
        let record = if self.offsets {
            u32_at(self.data, at + 4)? as usize
        } else {
            usize::try_from(u64_at(self.data, at + 8)?).ok()?
        };
        let record = self.functions.checked_add(record)?.checked_add(if self.offsets { 4 } else { 8 })?;
        let name = self.names.checked_add(u32_at(self.data, record)? as usize)?;
        let name = self.data.get(name..)?;
        let length = name.iter().take(LONGEST).position(|byte| *byte == 0)?;
        let steps = u32_at(self.data, record + 12)?;
        Some(Function {
            name: String::from_utf8_lossy(&name[..length]).into_owned(),
            frame: self.frame(steps as usize, self.start_of(number)?, address),
        })
    }

    /// The size of the frame at an address: pairs of differences, of the value and of the address up to which it holds.
    fn frame(&self, steps: usize, start: u64, address: u64) -> Option<u64> {
        if steps == 0 {
            return None;
        }
        let mut bytes = self.data.get(self.steps.checked_add(steps)?..)?.iter();
        let (mut value, mut until) = (-1i64, start);
        for step in 0..MOST_STEPS {
            let change = variable(&mut bytes)?;
            if change == 0 && step > 0 {
                return None;
            }
            let half = (change >> 1).cast_signed();
            value = value.checked_add(if change & 1 == 0 { half } else { !half })?;
            until = until.checked_add(variable(&mut bytes)?.checked_mul(self.quantum)?)?;
            if address < until {
                return u64::try_from(value).ok();
            }
        }
        None
    }
}

/// Goes on to the caller, and returns the address to which the function returns.
pub(crate) fn outer(
    registers: &mut UnwindRegsX86_64,
    frame: u64,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
) -> Option<u64> {
    let at = registers.sp().checked_add(frame)?;
    let back = read(at).ok()?;
    // A function with a frame saves its caller's frame pointer below the return address.
    if frame >= 8 {
        registers.set_bp(read(at - 8).ok()?);
    }
    registers.set_sp(at.checked_add(8)?);
    Some(back)
}

/// Where Go's functions begin. The table has it, unless the program can be loaded anywhere.
fn text_start(file: &ElfFile64<'_, LittleEndian>, table: u64, told: u64, length: u64) -> Option<u64> {
    if told != 0 {
        return Some(told);
    }
    let moved = file.dynamic_relocations()?.find(|(at, _)| *at == table.wrapping_add(24));
    if let Some((_, relocation)) = moved
        && relocation.target() == RelocationTarget::Absolute
    {
        return Some(relocation.addend().cast_unsigned());
    }
    if let Some(symbol) = file.symbols().find(|one| one.name() == Ok("runtime.text")) {
        return Some(symbol.address());
    }
    // Beside C code, they begin somewhere in it.
    let text = file.section_by_name(".text")?;
    (text.size().abs_diff(length) < 4096).then(|| text.address())
}

fn variable<'a>(bytes: &mut impl Iterator<Item = &'a u8>) -> Option<u64> {
    let mut value = 0;
    for shift in (0..35).step_by(7) {
        let byte = *bytes.next()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*data.get(at..)?.first_chunk()?))
}

fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*data.get(at..)?.first_chunk()?))
}
