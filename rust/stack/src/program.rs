//! What a program's file tells of its functions.

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
    range: Range<u64>,
    /// What is added to an address of the file's tables to get that of the process.
    bias: u64,
    symbols: Vec<Symbol<'a>>,
    go: Option<Table<'a>>,
}

impl<'a> Program<'a> {
    pub(crate) fn of(mapping: &Mapping<'a>) -> Option<Self> {
        let file = ElfFile64::<LittleEndian>::parse(mapping.file).ok()?;
        let bias = bias(&file, mapping)?;
        let mut symbols: Vec<_> =
            file.symbols().chain(file.dynamic_symbols()).filter_map(|one| function(&one)).collect();
        symbols.sort_unstable();
        let go = Table::of(&file);
        Some(Program { file, range: mapping.start..mapping.end, bias, symbols, go })
    }

    /// An address of the process, as the file's tables have it.
    pub(crate) fn inside(&self, address: u64) -> u64 {
        address.wrapping_sub(self.bias)
    }

    pub(crate) fn go_function(&self, inside: u64) -> Option<go::Function> {
        self.go.as_ref()?.function(inside)
    }

    /// The name of the function in which an address is.
    pub(crate) fn function(&self, inside: u64) -> Option<String> {
        let behind = self.symbols.partition_point(|(start, ..)| *start <= inside);
        let within = |(start, size, _): &&Symbol<'_>| inside - start < *size;
        // Only the few that begin at one address, or contain another.
        let (.., name) = self.symbols[..behind].iter().rev().take(8).find(within)?;
        Some(demangled(&String::from_utf8_lossy(&name[..name.len().min(LONGEST)])).chars().take(LONGEST).collect())
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

fn function<'a>(symbol: &object::read::elf::ElfSymbol64<'a, '_, LittleEndian>) -> Option<Symbol<'a>> {
    let is_one = symbol.kind() == SymbolKind::Text && !symbol.is_undefined() && symbol.size() > 0;
    let name = symbol.name_bytes().ok().filter(|name| !name.is_empty())?;
    is_one.then(|| (symbol.address(), symbol.size(), name))
}

/// The name as its source has it.
fn demangled(name: &str) -> String {
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        return format!("{rust:#}");
    }
    let cpp = name.starts_with("_Z").then(|| cpp_demangle::Symbol::new(name).ok()?.demangle().ok()).flatten();
    cpp.unwrap_or_else(|| name.to_owned())
}
