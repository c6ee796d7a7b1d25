//! What a program's file tells of its functions.

use std::fmt::{self, Write as _};
use std::ops::Range;

use framehop::{ExplicitModuleSectionInfo, Module};
use object::elf::{PF_X, PT_LOAD};
use object::read::elf::{ElfFile64, ProgramHeader as _};
use object::{LittleEndian, Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

use crate::Mapping;
use crate::go::{self, Table};

/// More of a name is not told.
const LONGEST: usize = 1024;

/// A function's address, size and name.
type Symbol<'a> = (u64, u64, &'a [u8]);

pub(crate) struct Program<'a> {
    file: ElfFile64<'a, LittleEndian>,
    /// Its separate debug file.
    debug: Option<ElfFile64<'a, LittleEndian>>,
    range: Range<u64>,
    /// What is added to an address of the file's tables to get that of the process.
    bias: u64,
    go: Option<Table<'a>>,
}

impl<'a> Program<'a> {
    pub(crate) fn of(mapping: &Mapping<'a>) -> Option<Self> {
        let file = ElfFile64::<LittleEndian>::parse(mapping.file).ok()?;
        let bias = bias(&file, mapping)?;
        let debug = ElfFile64::parse(mapping.debug).ok();
        let go = Table::of(&file);
        Some(Program { file, debug, range: mapping.start..mapping.end, bias, go })
    }

    /// An address of the process, as the file's tables have it.
    pub(crate) fn inside(&self, address: u64) -> u64 {
        address.wrapping_sub(self.bias)
    }

    pub(crate) fn go_function(&self, inside: u64) -> Option<go::Function> {
        self.go.as_ref()?.function(inside)
    }

    /// The name of the function in which an address is: of several, the innermost.
    pub(crate) fn function(&self, inside: u64) -> Option<String> {
        let own = self.file.symbols().chain(self.file.dynamic_symbols());
        let all = own.chain(self.debug.iter().flat_map(|debug| debug.symbols()));
        let (.., name) = all.filter_map(|one| function(&one, inside)).max()?;
        Some(demangled(&String::from_utf8_lossy(&name[..name.len().min(LONGEST)])))
    }

    pub(crate) fn module(&self) -> Option<Module<&'a [u8]>> {
        let section = |name: &str| {
            let section = self.file.section_by_name(name)?;
            Some((section.address()..section.address().checked_add(section.size())?, section.data().ok()?))
        };
        let (text, eh_frame, header) = (section(".text"), section(".eh_frame"), section(".eh_frame_hdr"));
        let debug_frame = section(".debug_frame").map(|(_, data)| data);
        let sections = ExplicitModuleSectionInfo {
            base_svma: 0,
            text_svma: text.as_ref().map(|(range, _)| range.clone()),
            text: text.map(|(_, data)| data),
            got_svma: section(".got").map(|(range, _)| range),
            eh_frame_svma: eh_frame.as_ref().map(|(range, _)| range.clone()),
            eh_frame: eh_frame.map(|(_, data)| data),
            eh_frame_hdr_svma: header.as_ref().map(|(range, _)| range.clone()),
            eh_frame_hdr: header.map(|(_, data)| data),
            debug_frame,
            ..ExplicitModuleSectionInfo::default()
        };
        Some(Module::new(String::new(), self.range.clone(), self.bias, sections))
    }
}

fn bias(file: &ElfFile64<'_, LittleEndian>, mapping: &Mapping<'_>) -> Option<u64> {
    let end = LittleEndian;
    let found = file.elf_program_headers().iter().find(|segment| {
        let start = segment.p_offset(end);
        // Mappings begin at whole pages.
        segment.p_type(end) == PT_LOAD
            && segment.p_flags(end).contains(PF_X)
            && (start & !0xfff..start.saturating_add(segment.p_filesz(end))).contains(&mapping.offset)
    })?;
    let address = found.p_vaddr(end).wrapping_sub(found.p_offset(end)).wrapping_add(mapping.offset);
    Some(mapping.start.wrapping_sub(address))
}

/// A function, if the address is inside.
fn function<'a>(symbol: &object::read::elf::ElfSymbol64<'a, '_, LittleEndian>, inside: u64) -> Option<Symbol<'a>> {
    let within = inside.checked_sub(symbol.address()).is_some_and(|offset| offset < symbol.size());
    if !within || symbol.kind() != SymbolKind::Text || symbol.is_undefined() {
        return None;
    }
    let name = symbol.name_bytes().ok().filter(|name| !name.is_empty())?;
    Some((symbol.address(), symbol.size(), name))
}

/// The name as its source has it. A short one can stand for one that fills all memory.
fn demangled(name: &str) -> String {
    let mut found = Bounded(String::new());
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        let _ = write!(found, "{rust:#}");
    } else if name.starts_with("_Z")
        && let Ok(cpp) = cpp_demangle::Symbol::new(name)
    {
        let _ = cpp.structured_demangle(&mut found, &cpp_demangle::DemangleOptions::new());
    }
    if found.0.is_empty() { name.to_owned() } else { found.0 }
}

/// What is written, up to the longest that is told; writing more fails.
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.0.len() + c.len_utf8() > LONGEST {
                return Err(fmt::Error);
            }
            self.0.push(c);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{LONGEST, demangled};

    #[test]
    fn a_name_that_doubles_with_each_of_its_parts_is_cut_off() {
        let digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
        let doubled: String =
            (0..35).map(|n| char::from(digits[n])).fold(String::new(), |name, n| name + &format!("S_IS{n}_S{n}_E"));
        let found = demangled(&format!("_Z1f1AIiiE{doubled}"));
        assert!(found.starts_with("f(A<int, int>, A<A<int, int>, A<int, int> >"), "{found}");
        assert!(found.len() <= LONGEST && found.len() > LONGEST / 2);
    }

    #[test]
    fn names_are_as_their_source_has_them() {
        assert_eq!(demangled("_RNvC7mycrate3foo"), "mycrate::foo");
        assert_eq!(demangled("_ZN5space3fooEii"), "space::foo(int, int)");
        assert_eq!(demangled("_Znot"), "_Znot");
        assert_eq!(demangled("main"), "main");
    }
}
