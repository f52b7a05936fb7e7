//! Names by blazesym; nothing else in spanprof mentions it.
//!
//! One `Symbolizer` a file: dropping it is then all there is to closing a file, and what one file
//! did to its caches ends with it.

use std::fs::File;
use std::path::{Path, PathBuf};

use blazesym::MaybeDefault;
use blazesym::symbolize::source::{Elf, Kernel, Source};
use blazesym::symbolize::{CodeInfo, Input, Reason, Sym, Symbolized, Symbolizer};
use indexmap::IndexSet;

use super::elf_headers::{ElfHeaders, crc32};
use super::path_of;
use crate::symbolize::protocol::{
    FRAMES_MAX, Frame, MESSAGE_LEN_MAX, Named, Nameless, Opened, Refusal, Segment, printable,
};

/// What the strings and frames of an answer may take as JSON; the rest is for the other fields.
const ANSWER_LEN_MAX: usize = MESSAGE_LEN_MAX / 4 * 3;

/// An ELF file, and the separate file with its symbols, if there is one.
pub(super) struct NamedFile {
    segments: Vec<Segment>,
    build_id: Option<Vec<u8>>,
    own: Symbols,
    debug: Option<Symbols>,
}

impl NamedFile {
    pub(super) fn open(file: File) -> Result<(Self, Opened), Refusal> {
        let ElfHeaders { opened, build_id } = ElfHeaders::read(&file).ok_or(Refusal::NotElf)?;
        let segments = opened.segments.clone();
        let own = Symbols::new(file, opened.has_lines);
        Ok((Self { segments, build_id, own, debug: None }, opened))
    }

    /// The build ID settles it where both files have one, without reading the whole file.
    pub(super) fn use_debug_file(&mut self, file: File, crc: Option<u32>) -> Result<(), Refusal> {
        let headers = ElfHeaders::read(&file).ok_or(Refusal::NotElf)?;
        let is_its_own = match (&self.build_id, &headers.build_id, crc) {
            (Some(own), Some(other), _) => own == other,
            (_, _, Some(crc)) => crc32(&file).is_ok_and(|actual| actual == crc),
            _ => false,
        };
        if !is_its_own {
            return Err(Refusal::NotItsDebugFile);
        }
        self.debug = Some(Symbols::new(file, headers.opened.has_lines));
        Ok(())
    }

    pub(super) fn name(&self, offsets: &[u64], inlined: bool, namer: &mut Namer) {
        let mut results = vec![Err(Nameless::NotLoaded); offsets.len()];
        // Virtual addresses, and by our own hand: in a separate debug file only these are the same,
        // its program headers say nothing true about file offsets.
        let mut missing: Vec<(usize, u64)> = offsets
            .iter()
            .enumerate()
            .filter_map(|(i, offset)| Some((i, Segment::address_of(&self.segments, *offset)?)))
            .collect();
        for (symbols, lines) in self.sources(inlined) {
            if missing.is_empty() {
                break;
            }
            let addresses: Vec<u64> = missing.iter().map(|(_, address)| *address).collect();
            let mut named = symbols.name(&addresses, lines, namer);
            if lines {
                symbols.qualify(&addresses, &mut named, namer);
            }
            let mut named = named.into_iter();
            missing.retain(|(i, _)| {
                let result = named.next().unwrap_or(Err(Nameless::Malformed));
                // Another source would not find room either.
                let is_missing = !matches!(result, Ok(_) | Err(Nameless::AnswerFull));
                results[*i] = result;
                is_missing
            });
        }
        namer.locations = results;
    }

    /// Where to look, best first: what one does not name or cannot read, the next may.
    fn sources(&self, inlined: bool) -> impl Iterator<Item = (&Symbols, bool)> {
        let files = || self.debug.iter().chain([&self.own]);
        let with_lines = files().filter(move |symbols| inlined && symbols.has_lines);
        with_lines.map(|symbols| (symbols, true)).chain(files().map(|symbols| (symbols, false)))
    }
}

/// A file with symbols.
struct Symbols {
    /// Keeps the path below alive.
    _file: File,
    path: PathBuf,
    has_lines: bool,
    symbolizer: Symbolizer,
}

impl Symbols {
    fn new(file: File, has_lines: bool) -> Self {
        let path = path_of(&file);
        Self { _file: file, path, has_lines, symbolizer: symbolizer() }
    }

    fn name(
        &self,
        addresses: &[u64],
        lines: bool,
        namer: &mut Namer,
    ) -> Vec<Result<Vec<Frame>, Nameless>> {
        let mut elf = Elf::new(&self.path);
        elf.debug_syms = lines;
        let input = Input::VirtOffset(addresses);
        symbolize(&self.symbolizer, &Source::Elf(elf), input, namer)
    }

    /// Gives the function that others were inlined into its full name. In `line-tables-only`, which
    /// is what release builds of Rust have if they have any, DWARF has `poll` where the symbol has
    /// `app::service::poll`. For C, DWARF has `f` where the symbol has `f.part.0`: that stays.
    fn qualify(
        &self,
        addresses: &[u64],
        named: &mut [Result<Vec<Frame>, Nameless>],
        namer: &mut Namer,
    ) {
        let (places, plain): (Vec<usize>, Vec<u64>) = (0..)
            .zip(addresses)
            .zip(named.iter())
            .filter(|(_, frames)| {
                let frame = frames.as_ref().ok().and_then(|frames| frames.last());
                frame.is_some_and(|frame| !namer.is_qualified(*frame))
            })
            .map(|(place, _)| place)
            .unzip();
        for (place, symbol) in places.into_iter().zip(self.name(&plain, false, namer)) {
            let symbol = symbol.ok().and_then(|frames| frames.last().copied());
            let symbol = symbol.filter(|symbol| namer.is_qualified(*symbol));
            let frame = named.get_mut(place).and_then(|named| named.as_mut().ok()?.last_mut());
            if let (Some(symbol), Some(frame)) = (symbol, frame) {
                frame.function = symbol.function;
            }
        }
    }
}

/// The path that a Rust or C++ name has, and a C name has not.
const QUALIFIED: &str = "::";

/// The kernel, by a copy of its `kallsyms`.
pub(super) struct KernelNames {
    _kallsyms: File,
    source: Source<'static>,
    symbolizer: Symbolizer,
}

impl KernelNames {
    pub(super) fn new(kallsyms: File) -> Self {
        let source = Source::Kernel(Kernel {
            kallsyms: MaybeDefault::Some(path_of(&kallsyms)),
            // A `vmlinux` would need `/proc/kcore` to be placed, which is not ours to read.
            vmlinux: MaybeDefault::None,
            debug_syms: false,
            ..Kernel::default()
        });
        Self { _kallsyms: kallsyms, source, symbolizer: symbolizer() }
    }

    pub(super) fn name(&self, addresses: &[u64], namer: &mut Namer) {
        let input = Input::AbsAddr(addresses);
        namer.locations = symbolize(&self.symbolizer, &self.source, input, namer);
    }
}

fn symbolizer() -> Symbolizer {
    // The descriptor's path always leads to the same file. The debug directory is for what debug
    // files themselves refer to (dwz); debug files are found by the client.
    Symbolizer::builder()
        .enable_auto_reload(false)
        .enable_demangling(true)
        .enable_code_info(true)
        .enable_inlined_fns(true)
        .set_debug_dirs(Some([Path::new("/usr/lib/debug")]))
        .build()
}

fn symbolize(
    symbolizer: &Symbolizer,
    source: &Source<'_>,
    input: Input<&[u64]>,
    namer: &mut Namer,
) -> Vec<Result<Vec<Frame>, Nameless>> {
    let count = input.into_inner().len();
    match symbolizer.symbolize(source, input) {
        Ok(symbolized) => symbolized.iter().map(|symbolized| namer.frames(symbolized)).collect(),
        // The file as a whole cannot be read this way.
        Err(_error) => vec![Err(Nameless::Malformed); count],
    }
}

/// Collects an answer within its bounds.
#[derive(Default)]
pub(super) struct Namer {
    strings: IndexSet<String>,
    len: usize,
    locations: Vec<Result<Vec<Frame>, Nameless>>,
}

impl Namer {
    pub(super) fn finish(self) -> Named {
        let Self { strings, len: _, locations } = self;
        Named { strings: strings.into_iter().collect(), locations, memory_bytes: 0 }
    }

    fn is_qualified(&self, frame: Frame) -> bool {
        let index = usize::try_from(frame.function).unwrap_or(usize::MAX);
        self.strings.get_index(index).is_some_and(|name| name.contains(QUALIFIED))
    }

    fn frames(&mut self, symbolized: &Symbolized<'_>) -> Result<Vec<Frame>, Nameless> {
        match symbolized {
            Symbolized::Sym(symbol) if symbol.name.is_empty() => Err(Nameless::NoSymbol),
            Symbolized::Sym(symbol) => self.symbol(symbol).ok_or(Nameless::AnswerFull),
            Symbolized::Unknown(Reason::MissingSyms) => Err(Nameless::NoSymbols),
            Symbolized::Unknown(Reason::UnknownAddr) => Err(Nameless::NoSymbol),
            Symbolized::Unknown(Reason::InvalidFileOffset) => Err(Nameless::NotLoaded),
            Symbolized::Unknown(_) => Err(Nameless::Malformed),
        }
    }

    /// Innermost first; blazesym has the function that everything was inlined into, then inwards.
    fn symbol(&mut self, symbol: &Sym<'_>) -> Option<Vec<Frame>> {
        let inlined = symbol.inlined.iter().rev();
        let inlined = inlined.map(|inlined| (&*inlined.name, inlined.code_info.as_ref()));
        inlined
            .chain([(&*symbol.name, symbol.code_info.as_deref())])
            .filter(|(name, _)| !name.is_empty())
            .take(FRAMES_MAX)
            .map(|(name, code)| self.frame(name, code))
            .collect()
    }

    fn frame(&mut self, name: &str, code: Option<&CodeInfo<'_>>) -> Option<Frame> {
        // `{"function":4294967295,"file":4294967295,"line":4294967295},`
        self.take(64)?;
        let file = match code {
            Some(code) => Some(self.string(&code.to_path().to_string_lossy())?),
            None => None,
        };
        let line = code.and_then(|code| code.line).unwrap_or_default();
        Some(Frame { function: self.string(name)?, file, line })
    }

    fn string(&mut self, text: &str) -> Option<u32> {
        let text = printable(text);
        let index = match self.strings.get_index_of(&*text) {
            Some(index) => index,
            None => {
                // Without control characters JSON makes at most two bytes of one.
                self.take(2 * text.len() + 3)?;
                self.strings.insert_full(text.into_owned()).0
            }
        };
        u32::try_from(index).ok()
    }

    fn take(&mut self, len: usize) -> Option<()> {
        self.len += len;
        (self.len <= ANSWER_LEN_MAX).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_stays_within_a_message() {
        let mut namer = Namer::default();
        let mut full = false;
        for i in 0..20_000 {
            let name = format!("{i}{}", "\"\\\u{1}".repeat(400));
            let result = namer.frame(&name, None).map(|frame| vec![frame]);
            full |= result.is_none();
            namer.locations.push(result.ok_or(Nameless::AnswerFull));
        }
        assert!(full);
        let answer = crate::symbolize::protocol::Answer::Named(namer.finish());
        assert!(crate::symbolize::protocol::to_bytes(&answer).is_ok());
    }

    #[test]
    fn the_same_string_is_sent_once() {
        let mut namer = Namer::default();
        let first = namer.frame("main", None).unwrap();
        let second = namer.frame("main", None).unwrap();
        assert_eq!(first.function, second.function);
        assert_eq!(namer.finish().strings, ["main"]);
    }
}
