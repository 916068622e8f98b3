//! Numbers in payloads: plain decimal and nothing else (protocol.md section 18).

use super::Errno;

/// Most digits that a number in a payload may have; more would not fit any of them.
const DIGITS_MAX: usize = 10;

/// Reads a decimal number of at most `max`.
///
/// # Errors
/// EINVAL for an empty string, any character that is no digit, a superfluous leading zero, or a number that is too large.
pub(crate) fn decimal(text: &[u8], max: u32) -> Result<u32, Errno> {
    let padded = text.len() > 1 && text.first() == Some(&b'0');
    if text.is_empty() || text.len() > DIGITS_MAX || padded {
        return Err(Errno::EINVAL);
    }
    let mut number = 0_u32;
    for byte in text {
        if !byte.is_ascii_digit() {
            return Err(Errno::EINVAL);
        }
        number = number
            .checked_mul(10)
            .and_then(|tens| tens.checked_add(u32::from(byte - b'0')))
            .ok_or(Errno::EINVAL)?;
    }
    if number > max {
        Err(Errno::EINVAL)
    } else {
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_decimal_in_range() {
        assert_eq!(decimal(b"0", 9), Ok(0));
        assert_eq!(decimal(b"65535", 65535), Ok(65535));
        assert_eq!(decimal(b"4294967295", u32::MAX), Ok(u32::MAX));
        for text in [
            "",
            "-1",
            "+5",
            " 5",
            "5 ",
            "5x",
            "0x5",
            "05",
            "00",
            "65536",
            "4294967301",
        ] {
            assert_eq!(
                decimal(text.as_bytes(), 65535),
                Err(Errno::EINVAL),
                "{text:?}"
            );
        }
        assert_eq!(decimal(b"4294967296", u32::MAX), Err(Errno::EINVAL));
        assert_eq!(decimal(&[b'9'; 40], u32::MAX), Err(Errno::EINVAL));
    }
}
