//! One step from a frame to its caller, by frame pointer.
//!
//! ```text
//!   higher addresses
//!   │ return address │ bp + 8
//!   │ caller's bp    │ bp       ◀── the frame pointer register
//!   │ locals         │
//!   lower addresses            ◀── sp
//! ```

/// Where a walk stands: a frame's code address and its frame pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The interrupted instruction, or a return address.
    pub ip: u64,
    /// The frame pointer.
    pub bp: u64,
}

/// Code below is never user code: Linux maps nothing in the first page (`vm.mmap_min_addr`).
const LOWEST_CODE: u64 = 4096;
/// Code above is never user code: user space ends at 2^56 (x86-64 with five page-table levels).
const USER_END: u64 = 1 << 56;

/// The caller of `frame`, or `None` where the chain ends.
///
/// `read_frame(bp)` reads the two words at `bp`: the caller's frame pointer and the return address.
/// In the kernel that is `bpf_probe_read_user`; in tests, a table.
#[inline(always)]
pub fn step(frame: Cursor, read_frame: impl FnOnce(u64) -> Option<[u64; 2]>) -> Option<Cursor> {
    if frame.bp & 7 != 0 {
        return None;
    }
    let [bp, ip] = read_frame(frame.bp)?;
    if !(LOWEST_CODE..USER_END).contains(&ip) {
        return None;
    }
    // Stacks grow down, so a caller's frame is always higher. Where it is not, this frame still has
    // a caller, but that caller's frame pointer leads nowhere: an unaligned value ends the walk
    // after it, without another kind of result.
    let bp = if bp > frame.bp { bp } else { 1 };
    Some(Cursor { ip, bp })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(stack: &[(u64, [u64; 2])], expected: &[u64]) {
        let mut frame = Some(Cursor { ip: 0x1000, bp: 0x10 });
        let mut walked = Vec::new();
        while let Some(at) = frame {
            walked.push(at.ip);
            frame = step(at, |bp| stack.iter().find(|(at, _)| *at == bp).map(|(_, words)| *words));
        }
        assert_eq!(walked, expected);
    }

    #[test]
    fn walks_to_the_root_frame() {
        check(&[(0x10, [0x20, 0xaaaa]), (0x20, [0, 0xbbbb])], &[0x1000, 0xaaaa, 0xbbbb]);
    }

    #[test]
    fn stops_where_memory_cannot_be_read() {
        check(&[(0x10, [0x20, 0xaaaa])], &[0x1000, 0xaaaa]);
    }

    #[test]
    fn stops_on_a_cycle() {
        check(&[(0x10, [0x10, 0xaaaa])], &[0x1000, 0xaaaa]);
        check(&[(0x10, [0x20, 0xaaaa]), (0x20, [0x10, 0xbbbb])], &[0x1000, 0xaaaa, 0xbbbb]);
    }

    #[test]
    fn stops_at_a_frame_pointer_that_is_not_one() {
        check(&[(0x10, [0x21, 0xaaaa]), (0x21, [0x30, 0xbbbb])], &[0x1000, 0xaaaa]);
    }

    #[test]
    fn refuses_a_return_address_that_is_not_user_code() {
        check(&[(0x10, [0x20, 0])], &[0x1000]);
        check(&[(0x10, [0x20, 0xfff])], &[0x1000]);
        check(&[(0x10, [0x20, 0xffff_ffff_8100_0000])], &[0x1000]);
    }
}
