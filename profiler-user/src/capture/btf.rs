//! Reads BTF, the kernel's own description of its types: just enough to find a member's offset.
//!
//! The format is the kernel's `Documentation/bpf/btf.rst`. A file comes from the running kernel, but
//! every read is checked all the same: it may as well be anything.

/// The offset of `path[0].path[1]…` in a struct, in bytes; members of anonymous structs and unions
/// count as members of what they are in.
pub(super) fn member_offset(btf: &[u8], structure: &str, path: &[&str]) -> Option<u32> {
    let btf = Btf::parse(btf)?;
    let mut within = btf.find_struct(structure)?;
    let mut bits = 0_u32;
    for name in path {
        let (offset, kind) = btf.member(within, name, 0)?;
        bits = bits.checked_add(offset)?;
        within = btf.underlying(kind)?;
    }
    Some(bits / 8)
}

const MAGIC: u16 = 0xeb9f;
/// The header of BTF version 1.
const HEADER_LEN: usize = 24;
/// Name, info, and size or type.
const TYPE_LEN: usize = 12;
/// Name, type and offset.
const MEMBER_LEN: usize = 12;
/// Anonymous structs, typedefs and qualifiers nest no deeper than this in the kernel.
const DEPTH_MAX: u32 = 16;

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
/// Typedef, volatile, const, restrict and type tag: another name for a type.
const KINDS_OF_ALIAS: [u32; 5] = [8, 9, 10, 11, 18];

struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins in `types`; type 1 is the first.
    starts: Vec<usize>,
}

/// A type's fixed part.
#[derive(Clone, Copy)]
struct Type {
    start: usize,
    name: u32,
    kind: u32,
    count: usize,
    has_bit_fields: bool,
    /// The type that this one is another name for.
    target: u32,
}

impl<'a> Btf<'a> {
    fn parse(btf: &'a [u8]) -> Option<Self> {
        if u16::from_le_bytes(*btf.first_chunk()?) != MAGIC {
            return None;
        }
        let header_len = usize::try_from(word(btf, 4)?).ok().filter(|&len| len >= HEADER_LEN)?;
        let body = btf.get(header_len..)?;
        let section = |offset_at, len_at| {
            let offset = usize::try_from(word(btf, offset_at)?).ok()?;
            let len = usize::try_from(word(btf, len_at)?).ok()?;
            body.get(offset..offset.checked_add(len)?)
        };
        let mut parsed =
            Self { types: section(8, 12)?, strings: section(16, 20)?, starts: Vec::new() };
        let mut at = 0;
        while at < parsed.types.len() {
            let found = parsed.type_at(at)?;
            parsed.starts.push(at);
            at = at.checked_add(TYPE_LEN)?.checked_add(trailing_len(found)?)?;
        }
        Some(parsed)
    }

    fn type_at(&self, start: usize) -> Option<Type> {
        let info = word(self.types, start.checked_add(4)?)?;
        Some(Type {
            start,
            name: word(self.types, start)?,
            kind: info >> 24 & 0x1f,
            count: usize::try_from(info & 0xffff).ok()?,
            has_bit_fields: info >> 31 == 1,
            target: word(self.types, start.checked_add(8)?)?,
        })
    }

    fn type_of(&self, id: u32) -> Option<Type> {
        let index = usize::try_from(id).ok()?.checked_sub(1)?;
        self.type_at(*self.starts.get(index)?)
    }

    fn name(&self, offset: u32) -> Option<&'a str> {
        let bytes = self.strings.get(usize::try_from(offset).ok()?..)?;
        let len = bytes.iter().position(|&byte| byte == 0)?;
        std::str::from_utf8(bytes.get(..len)?).ok()
    }

    fn find_struct(&self, name: &str) -> Option<Type> {
        let types = self.starts.iter().filter_map(|&start| self.type_at(start));
        types.into_iter().find(|found| {
            found.kind == KIND_STRUCT && found.count > 0 && self.name(found.name) == Some(name)
        })
    }

    /// The type behind typedefs and qualifiers.
    fn underlying(&self, mut id: u32) -> Option<Type> {
        for _ in 0..DEPTH_MAX {
            let found = self.type_of(id)?;
            if !KINDS_OF_ALIAS.contains(&found.kind) {
                return Some(found);
            }
            id = found.target;
        }
        None
    }

    /// The bit offset and the type of a member.
    fn member(&self, within: Type, name: &str, depth: u32) -> Option<(u32, u32)> {
        if !matches!(within.kind, KIND_STRUCT | KIND_UNION) || depth > DEPTH_MAX {
            return None;
        }
        for index in 0..within.count {
            let at = within.start.checked_add(TYPE_LEN)?.checked_add(index * MEMBER_LEN)?;
            let kind = word(self.types, at.checked_add(4)?)?;
            let offset = word(self.types, at.checked_add(8)?)?;
            let offset = if within.has_bit_fields { offset & 0x00ff_ffff } else { offset };
            let own_name = self.name(word(self.types, at)?)?;
            if own_name == name {
                return Some((offset, kind));
            }
            if own_name.is_empty()
                && let Some(nested) = self.underlying(kind)
                && let Some((bits, kind)) = self.member(nested, name, depth + 1)
            {
                return Some((offset.checked_add(bits)?, kind));
            }
        }
        None
    }
}

/// How many bytes follow a type's fixed part; `None` for a kind that is not known, whose length
/// cannot be guessed.
fn trailing_len(of: Type) -> Option<usize> {
    Some(match of.kind {
        1 | 14 | 17 => 4,
        2 | 7..=12 | 16 | 18 => 0,
        3 => 12,
        4 | 5 | 15 | 19 => of.count * 12,
        6 | 13 => of.count * 8,
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STRINGS: &[u8] = b"\0task\0a\0flags\0thread\0fsbase\0thread_struct\0alias\0";

    fn name(of: &str) -> u32 {
        let text = String::from_utf8_lossy(STRINGS);
        let at = text.find(&format!("\0{of}\0")).unwrap() + 1;
        u32::try_from(at).unwrap()
    }

    /// ```c
    /// struct task { int a; struct { union { int flags:5; }; }; alias thread; };
    /// struct thread_struct { int a; long fsbase; };
    /// typedef const struct thread_struct alias;
    /// ```
    fn sample() -> Vec<u8> {
        let info = |kind: u32, count: u32, bit_fields: bool| {
            kind << 24 | count | u32::from(bit_fields) << 31
        };
        let words = [
            // 1: int
            &[name("a"), info(1, 0, false), 4, 0x20][..],
            // 2: struct thread_struct
            &[name("thread_struct"), info(4, 2, false), 16],
            &[name("a"), 1, 0],
            &[name("fsbase"), 1, 64],
            // 3: const, 4: typedef
            &[0, info(10, 0, false), 2],
            &[name("alias"), info(8, 0, false), 3],
            // 5: union, 6: struct around it
            &[0, info(5, 1, true), 4],
            &[name("flags"), 1, 5 << 24 | 3],
            &[0, info(4, 1, false), 8],
            &[0, 5, 32],
            // 7: struct task
            &[name("task"), info(4, 3, false), 64],
            &[name("a"), 1, 0],
            &[0, 6, 32],
            &[name("thread"), 4, 256],
        ]
        .concat();
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
        let mut btf = MAGIC.to_le_bytes().to_vec();
        btf.extend([1, 0]);
        for word in [24, 0, len(&types), len(&types), len(STRINGS)] {
            btf.extend(word.to_le_bytes());
        }
        [btf, types, STRINGS.to_vec()].concat()
    }

    #[test]
    fn members_are_found_through_names_and_nesting() {
        let btf = sample();
        assert_eq!(member_offset(&btf, "task", &["a"]), Some(0));
        assert_eq!(member_offset(&btf, "task", &["thread"]), Some(32));
        assert_eq!(member_offset(&btf, "task", &["thread", "fsbase"]), Some(40));
        // 32 + 32 + 3 bits.
        assert_eq!(member_offset(&btf, "task", &["flags"]), Some(8));
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let btf = sample();
        assert_eq!(member_offset(&btf, "task", &["fsbase"]), None);
        assert_eq!(member_offset(&btf, "tasks", &["a"]), None);
        assert_eq!(member_offset(&btf, "task", &["a", "a"]), None);
        assert_eq!(member_offset(b"\x7fELF", "task", &["a"]), None);
    }

    #[test]
    fn a_file_that_is_cut_anywhere_is_not_read() {
        let btf = sample();
        for len in 0..btf.len() {
            assert_eq!(member_offset(&btf[..len], "task", &["a"]), None, "{len}");
        }
    }

    proptest! {
        #[test]
        fn a_damaged_file_is_read_within_bounds(at in any::<usize>(), with in any::<u8>()) {
            let mut btf = sample();
            let at = at % btf.len();
            btf[at] ^= with;
            if let Some(offset) = member_offset(&btf, "task", &["thread", "fsbase"]) {
                prop_assert!(offset <= 2 * (u32::MAX / 8));
            }
        }
    }
}
