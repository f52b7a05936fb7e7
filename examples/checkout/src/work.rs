//! What the routes burn their CPU in: one function each, that a flame graph can be asked for.
//!
//! Each call is a slice of about a millisecond in an optimized build, and works on numbers alone, so
//! that a slice costs the same each time.

use std::hint::black_box;

/// Sums a cart: long chains of multiplications and divisions.
#[inline(never)]
pub(crate) fn price_cart(cart: u64) -> u64 {
    let mut total = cart | 1;
    for item in 1..black_box(140_000_u64) {
        let quantity = total % 97 + 1;
        total = total.wrapping_mul(31).wrapping_add(item / quantity);
    }
    black_box(total)
}

/// Ranks products: a bubble sort, so that the time is spent in this function and not in `std`.
#[inline(never)]
pub(crate) fn rank_products(customer: u64) -> u64 {
    let mut scores = [0_u64; 1750];
    let mut seed = customer | 1;
    for score in &mut scores {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *score = seed >> 33;
    }
    let scores = black_box(&mut scores);
    for unsorted in (1..scores.len()).rev() {
        for index in 0..unsorted {
            let (left, right) = (scores[index], scores[index + 1]);
            scores[index] = left.min(right);
            scores[index + 1] = left.max(right);
        }
    }
    black_box(scores[scores.len() / 2])
}

/// Signs an order: rounds of mixing.
#[inline(never)]
pub(crate) fn sign_order(order: u64) -> u64 {
    let mut signature = order ^ 0x9e37_79b9_7f4a_7c15;
    for round in 0..black_box(600_000_u32) {
        signature ^= signature << 13;
        signature ^= signature >> 7;
        signature ^= signature << 17;
        signature = signature.rotate_left(round & 7);
    }
    black_box(signature)
}

/// Parses what a customer sent: a little work that all routes share, in the routes' own spans.
#[inline(never)]
pub(crate) fn parse_request(bytes: u64) -> u64 {
    let mut hash = bytes;
    for byte in 0..black_box(20_000_u64) {
        hash = (hash ^ (byte & 0xff)).wrapping_mul(0x0100_0000_01b3);
    }
    black_box(hash)
}

/// Looks for expired carts, in no span.
#[inline(never)]
pub(crate) fn sweep_expired_carts(carts: u64) -> u64 {
    let mut expired = 0_u64;
    for cart in 0..black_box(100_000_u64) {
        expired += u64::from(cart.wrapping_mul(carts | 1) >> 60 == 0);
    }
    black_box(expired)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Results feed the next slice, so every number must be an input.
    #[test]
    fn any_number_is_an_input() {
        for input in [0, 1, u64::MAX, 1 << 63] {
            for work in [price_cart, rank_products, sign_order, parse_request, sweep_expired_carts]
            {
                assert_eq!(work(input), work(input));
            }
        }
    }
}
