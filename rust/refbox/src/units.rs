//! Seconds and bytes in the notation of the command line.

use std::time::Duration;

/// A day: longer runs are a mistake.
const LONGEST: f64 = 86_400.0;

/// Decimal seconds above 0.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    if number.is_nan() || number <= 0.0 {
        return Err("must be above 0 seconds".to_owned());
    }
    if number > LONGEST {
        return Err(format!("at most {LONGEST} seconds"));
    }
    // A smaller limit rounds to zero.
    Ok(Duration::from_secs_f64(number).max(Duration::from_millis(1)))
}

/// Bytes above 0, with an optional suffix K, M or G (powers of 1024).
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: i128 = digits.parse().map_err(|_| format!("{text:?} is not a number of bytes (suffixes: K, M, G)"))?;
    if number <= 0 {
        return Err("must be above 0 bytes".to_owned());
    }
    number.checked_shl(shift).and_then(|n| u64::try_from(n).ok()).ok_or_else(|| format!("{text} bytes are too many"))
}

/// A count above 0.
pub(crate) fn count(text: &str) -> Result<u32, String> {
    match text.parse::<i64>() {
        Ok(number) if number > 0 => u32::try_from(number).map_err(|_| format!("{text} are too many")),
        Ok(_) => Err("must be above 0".to_owned()),
        Err(_) => Err(format!("{text:?} is not a number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_decimal_and_above_zero() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(seconds("1e-9"), Ok(Duration::from_millis(1)));
        for wrong in ["", "0", "-1", "nan", "inf", "86401", "1s"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bytes_take_a_suffix() {
        assert_eq!(bytes("64M"), Ok(64 << 20));
        assert_eq!(bytes("1k"), Ok(1024));
        assert_eq!(bytes("7"), Ok(7));
        for wrong in ["", "M", "0", "-1K", "1.5G", "99999999999999999999G", "ä"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
