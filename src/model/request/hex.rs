//! Hexadecimal encoding and decoding by table, because ids and digests are read and written several
//! times in each run.

const DIGITS: &[u8; 16] = b"0123456789abcdef";
/// The value in [`VALUES`] of a byte that is no digit: a digit's value has none of its upper bits.
const NONE: u8 = 0xf0;
/// The value of each byte as a digit, in either case.
const VALUES: [u8; 256] = {
    let mut values = [NONE; 256];
    let mut value: u8 = 0;
    while value < 16 {
        let digit = DIGITS[value as usize];
        values[digit as usize] = value;
        values[digit.to_ascii_uppercase() as usize] = value;
        value += 1;
    }
    values
};

/// Decodes twice as many digits as there are bytes; `None` for anything else.
pub(super) fn decode<const BYTES: usize>(digits: &[u8]) -> Option<[u8; BYTES]> {
    if digits.len() != 2 * BYTES {
        return None;
    }
    let mut bytes = [0; BYTES];
    // The digits are checked once at the end instead of one by one.
    let mut seen = 0;
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = [pair[0], pair[1]].map(|digit| VALUES[usize::from(digit)]);
        seen |= high | low;
        *byte = (high << 4) | (low & 0x0f);
    }
    (seen & NONE == 0).then_some(bytes)
}

/// Writes two lower-case digits for each byte into `digits`, which has room for them.
pub(super) fn encode(bytes: &[u8], digits: &mut [u8]) {
    for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 0x0f)];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_byte_is_a_digit_or_refused() {
        for byte in 0..=255_u8 {
            let value = char::from(byte).to_digit(16).filter(|_| byte.is_ascii());
            let high = decode::<1>(&[byte, b'0']).map(|[read]| u32::from(read) >> 4);
            let low = decode::<1>(&[b'0', byte]).map(|[read]| u32::from(read));
            assert_eq!((high, low), (value, value), "{byte}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(bytes: [u8; 16]) {
            let mut digits = [0; 32];
            encode(&bytes, &mut digits);
            prop_assert_eq!(str::from_utf8(&digits).unwrap(), format!("{:032x}", u128::from_be_bytes(bytes)));
            prop_assert_eq!(decode(&digits), Some(bytes));
            prop_assert_eq!(decode(&digits.to_ascii_uppercase()), Some(bytes));
            prop_assert_eq!(decode::<16>(&digits[1..]), None);
            prop_assert_eq!(decode::<15>(&digits), None);
        }
    }
}
