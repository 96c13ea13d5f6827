//! The binary forms of values that need more than their bytes put in order.

/// Digits of a `numeric` are four decimal ones each.
const BASE: u128 = 10_000;
/// The sign field of a negative `numeric`.
const NEGATIVE: u16 = 0x4000;

/// An integer as `numeric` (PostgreSQL's numeric_send): number of digits, weight of the first one,
/// sign, digits behind the point, then the digits without zeros at the end, two bytes each.
pub(super) fn numeric(number: i128) -> Vec<u8> {
    let mut digits = Vec::new();
    let mut left = number.unsigned_abs();
    while left > 0 {
        digits.push((left % BASE) as u16);
        left /= BASE;
    }
    let weight = digits.len().saturating_sub(1);
    let zeros = digits.iter().take_while(|digit| **digit == 0).count();
    let sign = if number < 0 { NEGATIVE } else { 0 };
    let head = [digits.len().saturating_sub(zeros) as u16, weight as u16, sign, 0];
    let words = head.iter().chain(digits.iter().skip(zeros).rev());
    words.flat_map(|word| word.to_be_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::text::hex;

    #[test]
    fn integers_have_the_form_that_postgresql_gives_them() {
        // Asked from PostgreSQL 15 with numeric_send().
        for (number, want) in [
            (0, "0000000000000000"),
            (1, "00010000000000000001"),
            (-1, "00010000400000000001"),
            (9_999, "0001000000000000270f"),
            (10_000, "00010001000000000001"),
            (10_001, "000200010000000000010001"),
            (100_000_000, "00010002000000000001"),
            (120_000_000, "0002000200000000000107d0"),
            (12_345_678_901_234, "0004000300000000000c0d801ed204d2"),
            (u64::MAX.into(), "000500040000000007341a5802e103bb064f"),
        ] {
            assert_eq!(hex(&numeric(number)), want, "{number}");
        }
    }
}
