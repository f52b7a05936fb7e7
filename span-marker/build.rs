//! Makes an executable export the thread-local symbol and the hook, without a line in its own build.
//!
//! A program linked the default way keeps `otel_thread_ctx_v1` out of its dynamic symbol table, and
//! cargo does not hand a dependency's linker arguments on. It does hand on libraries. So this
//! script writes a shared object of a few hundred bytes that refers to both names, weakly, and links
//! it. LLD (rustc's default linker here) and gold then export the program's definitions; because
//! rustc links with `--as-needed`, the program does not depend on the object at run time. GNU ld and
//! mold ignore it.

use std::{env, error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SPAN_MARKER_NO_LINK_STUB");
    let target = |key: &str| env::var(format!("CARGO_CFG_TARGET_{key}")).unwrap_or_default();
    let machine = match target("ARCH").as_str() {
        "x86_64" => 62,
        "aarch64" => 183,
        _ => return Ok(()),
    };
    // A shared object cannot be an input of a static link. musl links statically by default, and
    // cargo does not name `crt-static` among its features.
    let dynamic = target("OS") == "linux"
        && target("ENV") == "gnu"
        && !target("FEATURE").split(',').any(|feature| feature == "crt-static");
    if !dynamic || env::var_os("SPAN_MARKER_NO_LINK_STUB").is_some() {
        return Ok(());
    }
    let out = env::var("OUT_DIR")?;
    fs::write(Path::new(&out).join("libspan_marker_export.so"), shared_object(machine))?;
    println!("cargo::rustc-link-search=native={out}");
    println!("cargo::rustc-link-lib=dylib=span_marker_export");
    Ok(())
}

const ELF_HEADER_LEN: u64 = 64;
const PROGRAM_HEADER_LEN: u64 = 56;
const SYMBOL_LEN: u64 = 24;
/// With the null symbol, which comes first.
const SYMBOLS: u64 = 3;

/// A string table: offsets are handed out as strings are added.
struct Strings(Vec<u8>);

impl Strings {
    fn add(&mut self, text: &str) -> u64 {
        let offset = self.0.len() as u64;
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
        offset
    }
}

/// An ELF file under construction, little endian as both machines are.
#[derive(Default)]
struct Elf(Vec<u8>);

impl Elf {
    fn half(&mut self, values: &[u16]) -> &mut Self {
        self.0.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }

    fn word(&mut self, values: &[u32]) -> &mut Self {
        self.0.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }

    fn long(&mut self, values: &[u64]) -> &mut Self {
        self.0.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

/// The shared object: two weak, undefined symbols, one of them thread-local, and what an ELF needs
/// around them. Weak, because a strong one would be an error in a program that dropped the definition.
fn shared_object(machine: u16) -> Vec<u8> {
    let mut names = Strings(vec![0]);
    let soname = names.add("libspan_marker_export.so");
    let slot = names.add("otel_thread_ctx_v1");
    let hook = names.add("span_marker_thread_slot_v1");
    let mut sections = Strings(vec![0]);
    let section_names = [".dynsym", ".dynstr", ".dynamic", ".hash", ".shstrtab"]
        .map(|name| u32::try_from(sections.add(name)).unwrap_or(0));

    let symbols = ELF_HEADER_LEN + 2 * PROGRAM_HEADER_LEN;
    let hash = symbols + SYMBOLS * SYMBOL_LEN;
    let hash_len = 24; // six words
    let dynamic = hash + hash_len;
    let dynamic_len = 6 * 16;
    let strings = dynamic + dynamic_len;
    let strings_len = names.0.len() as u64;
    let end = strings + strings_len;
    let section_headers = (end + sections.0.len() as u64).next_multiple_of(8);

    let mut elf = Elf::default();
    elf.bytes(b"\x7fELF\x02\x01\x01").bytes(&[0; 9]);
    elf.half(&[3, machine]).word(&[1]).long(&[0, ELF_HEADER_LEN, section_headers]);
    elf.word(&[0]).half(&[64, 56, 2, 64, 6, 5]);
    // PT_LOAD (all of it, writable as .dynamic is), PT_DYNAMIC.
    elf.word(&[1, 6]).long(&[0, 0, 0, end, end, 0x1000]);
    elf.word(&[2, 6]).long(&[dynamic, dynamic, dynamic, dynamic_len, dynamic_len, 8]);
    // .dynsym: the null symbol, then STB_WEAK, SHN_UNDEF: an STT_TLS and an STT_FUNC.
    elf.bytes(&[0; 24]);
    for (name, kind) in [(slot, 6), (hook, 2)] {
        elf.word(&[u32::try_from(name).unwrap_or(0)]).bytes(&[(2 << 4) | kind, 0]);
        elf.half(&[0]).long(&[0, 0]);
    }
    // .hash: one bucket, three symbols, a chain.
    elf.word(&[1, 3, 1, 0, 2, 0]);
    // DT_SONAME, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_NULL.
    elf.long(&[14, soname, 4, hash, 5, strings, 6, symbols, 10, strings_len, 0, 0]);
    elf.bytes(&names.0).bytes(&sections.0);
    elf.0.resize(usize::try_from(section_headers).unwrap_or(0), 0);

    let mut section = |name: usize, kind, flags, at: u64, len, link: [u32; 2], align, entry| {
        let name = name.checked_sub(1).map_or(0, |index| section_names[index]);
        let address = if flags == 0 { 0 } else { at };
        elf.word(&[name, kind]).long(&[flags, address, at, len]);
        elf.word(&link).long(&[align, entry]);
    };
    section(0, 0, 0, 0, 0, [0, 0], 0, 0);
    section(1, 11, 2, symbols, SYMBOLS * SYMBOL_LEN, [2, 1], 8, SYMBOL_LEN);
    section(2, 3, 2, strings, strings_len, [0, 0], 1, 0);
    section(3, 6, 3, dynamic, dynamic_len, [2, 0], 8, 16);
    section(4, 5, 2, hash, hash_len, [1, 0], 8, 4);
    section(5, 3, 0, end, sections.0.len() as u64, [0, 0], 1, 0);
    elf.0
}
