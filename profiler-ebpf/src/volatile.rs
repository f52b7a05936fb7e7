//! What a loop carries is written to map memory and read back volatile: the verifier then sees one
//! state per iteration, not one per number of frames so far.

#[inline(always)]
pub(crate) fn load<T: Copy>(from: *const T) -> T {
    // SAFETY: the caller's reference or map element is valid for reads.
    unsafe { core::ptr::read_volatile(from) }
}

#[inline(always)]
pub(crate) fn keep<T: Copy>(to: &mut T, value: T) {
    // SAFETY: an exclusive reference is valid for writes.
    unsafe { core::ptr::write_volatile(to, value) };
}
