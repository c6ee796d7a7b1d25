//! Byte scanners that several formats share. None allocates; none looks at a byte twice.

use super::error::{At, ParseError, Result};

/// A decimal number without sign.
pub(super) fn unsigned<T: TryFrom<u64>>(digits: &[u8]) -> Option<T> {
    radix(digits, 10)
}

/// A decimal number, perhaps with a minus.
pub(super) fn signed<T: TryFrom<i64>>(text: &[u8]) -> Option<T> {
    let value = match text.strip_prefix(b"-") {
        Some(digits) => 0_i64.checked_sub_unsigned(unsigned(digits)?)?,
        None => unsigned::<i64>(text)?,
    };
    T::try_from(value).ok()
}

/// A hexadecimal number without prefix.
pub(super) fn hex<T: TryFrom<u64>>(digits: &[u8]) -> Option<T> {
    radix(digits, 16)
}

/// An octal number; C's leading zero is a digit like any other.
pub(super) fn octal<T: TryFrom<u64>>(digits: &[u8]) -> Option<T> {
    radix(digits, 8)
}

fn radix<T: TryFrom<u64>>(digits: &[u8], radix: u32) -> Option<T> {
    if digits.is_empty() {
        return None;
    }
    let value = digits.iter().try_fold(0_u64, |value, digit| {
        let digit = char::from(*digit).to_digit(radix)?;
        value.checked_mul(u64::from(radix))?.checked_add(u64::from(digit))
    })?;
    T::try_from(value).ok()
}

/// A number that the kernel prints with `%d` from an unsigned 32-bit id, hence negative from 2^31 on.
pub(super) fn wrapped_id(text: &[u8]) -> Option<u32> {
    unsigned(text).or_else(|| signed::<i32>(text).map(i32::cast_unsigned))
}

pub(super) fn split_once(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = memchr::memchr(separator, text)?;
    Some((&text[..at], &text[at + 1..]))
}

/// Takes what is before the next single space; an empty field is a field.
pub(super) fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (field, after) = split_once(rest, b' ')?;
    *rest = after;
    Some(field)
}

/// Takes the next run of non-blanks; empty at the end.
pub(super) fn word<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let text = trim_blanks(rest);
    let end = memchr::memchr2(b' ', b'\t', text).unwrap_or(text.len());
    let (word, after) = text.split_at(end);
    *rest = after;
    word
}

/// All blank-separated numbers of a line into an array of exactly that many.
pub(super) fn numbers<const N: usize>(mut text: &[u8]) -> Option<[u32; N]> {
    let mut values = [0; N];
    for value in &mut values {
        *value = unsigned(word(&mut text))?;
    }
    trim_blanks(text).is_empty().then_some(values)
}

/// All blank-separated signed numbers of a line; at least one.
pub(super) fn pid_list(mut text: &[u8]) -> Option<Vec<i32>> {
    let mut pids = Vec::new();
    loop {
        match word(&mut text) {
            b"" if pids.is_empty() => return None,
            b"" => return Some(pids),
            pid => pids.push(signed(pid)?),
        }
    }
}

/// Without leading spaces and tabs.
pub(super) fn trim_blanks(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|byte| !matches!(byte, b' ' | b'\t'));
    &text[start.unwrap_or(text.len())..]
}

/// The lines of a text, without their newlines; a last line without one comes as it is.
pub(super) struct Lines<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let (line, rest) = split_once(self.0, b'\n').unwrap_or((self.0, b""));
        self.0 = rest;
        Some(line)
    }
}

/// The lines of a text that must end with a newline, with the error context of each.
pub(super) fn lines<'a>(format: &'static str, text: &'a [u8]) -> Result<impl Iterator<Item = At<'a>> + use<'a>> {
    if !text.is_empty() && !text.ends_with(b"\n") {
        let start = memchr::memrchr(b'\n', text).map_or(0, |newline| newline + 1);
        return Err(ParseError::new(format, "end of line", &text[start..]));
    }
    Ok(Lines(text).map(move |line| At { format, line }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_end_at_their_limits() {
        assert_eq!(unsigned::<u64>(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(unsigned::<u64>(b"18446744073709551616"), None);
        assert_eq!(unsigned::<u32>(b"4294967296"), None);
        assert_eq!(signed::<i64>(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(signed::<i64>(b"9223372036854775808"), None);
        assert_eq!(signed::<i32>(b"-1"), Some(-1));
        assert_eq!(octal::<u32>(b"02100002"), Some(0o2_100_002));
        assert_eq!(wrapped_id(b"-2"), Some(u32::MAX - 1));
        for bad in [&b""[..], b"-", b"+1", b" 1", b"1 ", b"0x1", b"--1", b"1_0"] {
            assert_eq!(signed::<i64>(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_text_without_final_newline_was_cut() {
        assert_eq!(lines("locks", b"").unwrap().count(), 0);
        assert_eq!(lines("locks", b"a\n\nb\n").unwrap().count(), 3);
        let error = lines("locks", b"a\nbc").err().unwrap();
        assert_eq!((error.field(), error.excerpt().as_bytes()), ("end of line", b"bc".as_slice()));
    }
}
