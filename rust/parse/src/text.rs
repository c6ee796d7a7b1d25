//! Hostile bytes in a form that is safe and lossless to show, log and store.

mod runner;

use std::borrow::Borrow;
use std::ffi::OsStr;
use std::fmt::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use runner::harmless;

/// Bytes from an untrusted source: a path, a comm, an argv, a key's description.
///
/// `Display` and serde use one escaped form, which is safe on terminals and in logs and parses back to the
/// same bytes with [`Text::parse`]. Printable Unicode stays as it is; a backslash is `\\`; newline, tab and
/// carriage return are `\n`, `\t`, `\r`; every byte of another control character, of an invisible or bidi
/// formatting character (Unicode TR 36 section 2.1, "Trojan Source") or of invalid UTF-8 is `\xNN`.
///
/// Equality, order and hash are those of the bytes, so a `[u8]` finds a `Text` in a map.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(Box<[u8]>);

/// An escaped form that [`Text::parse`] could not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad escape at byte {offset}: expected \\\\, \\n, \\t, \\r or \\xNN")]
pub struct BadEscape {
    /// Where the offending backslash is, in bytes from the start of the string.
    pub offset: usize,
}

impl Text {
    /// Reads the form that `Display` writes.
    ///
    /// # Errors
    /// [`BadEscape`] if a backslash begins none of the five escapes.
    pub fn parse(escaped: &str) -> Result<Self, BadEscape> {
        let input = escaped.as_bytes();
        let mut bytes = Vec::with_capacity(input.len());
        let mut at = 0;
        while let Some(skipped) = memchr::memchr(b'\\', &input[at..]) {
            bytes.extend_from_slice(&input[at..at + skipped]);
            let offset = at + skipped;
            let (byte, width) = unescape(&input[offset + 1..]).ok_or(BadEscape { offset })?;
            bytes.push(byte);
            at = offset + 1 + width;
        }
        bytes.extend_from_slice(&input[at..]);
        Ok(bytes.into())
    }

    /// The bytes, unescaped.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as the path that they name.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }
}

/// The byte that an escape stands for, and the number of input bytes of the escape.
fn unescape(after: &[u8]) -> Option<(u8, usize)> {
    match *after {
        [b'\\', ..] => Some((b'\\', 1)),
        [b'n', ..] => Some((b'\n', 1)),
        [b't', ..] => Some((b'\t', 1)),
        [b'r', ..] => Some((b'\r', 1)),
        [b'x', high, low, ..] => Some((hex(high)? << 4 | hex(low)?, 3)),
        _ => None,
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// Whether a character could hide, reorder or control something where it is shown.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

fn escape_bytes(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            let valid = chunk.valid();
            let mut plain = 0;
            for (at, c) in valid.char_indices() {
                if c != '\\' && !is_unsafe(c) {
                    continue;
                }
                f.write_str(&valid[plain..at])?;
                plain = at + c.len_utf8();
                match c {
                    '\\' => f.write_str("\\\\")?,
                    '\n' => f.write_str("\\n")?,
                    '\t' => f.write_str("\\t")?,
                    '\r' => f.write_str("\\r")?,
                    _ => escape_bytes(&valid.as_bytes()[at..plain], f)?,
                }
            }
            f.write_str(&valid[plain..])?;
            escape_bytes(chunk.invalid(), f)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        fmt::Display::fmt(self, f)?;
        f.write_char('"')
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let escaped = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&escaped).map_err(serde::de::Error::custom)
    }
}

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Borrow<[u8]> for Text {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for Text {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl<const N: usize> From<&[u8; N]> for Text {
    fn from(bytes: &[u8; N]) -> Self {
        Self(bytes.as_slice().into())
    }
}

impl From<Vec<u8>> for Text {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into_boxed_slice())
    }
}

impl From<&OsStr> for Text {
    fn from(name: &OsStr) -> Self {
        name.as_bytes().into()
    }
}

impl From<&Path> for Text {
    fn from(path: &Path) -> Self {
        path.as_os_str().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(bytes: &[u8]) -> String {
        Text::from(bytes).to_string()
    }

    #[test]
    fn printable_unicode_stays_and_everything_else_is_escaped() {
        assert_eq!(shown("a b (ü) 日本 🦀 <b>".as_bytes()), "a b (ü) 日本 🦀 <b>");
        assert_eq!(shown(b"a\\b\n\t\r"), "a\\\\b\\n\\t\\r");
        assert_eq!(shown(b"\x00\x1b[31m\x7f"), "\\x00\\x1b[31m\\x7f");
        assert_eq!(shown("\u{9b}31m".as_bytes()), "\\xc2\\x9b31m");
        assert_eq!(shown(b"a\xff\xc3(\xe2\x82"), "a\\xff\\xc3(\\xe2\\x82");
    }

    #[test]
    fn characters_that_reorder_or_hide_text_are_escaped() {
        for c in "\u{61c}\u{200b}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2066}\u{2069}\u{feff}\u{e0041}".chars() {
            let text = c.to_string();
            assert!(shown(text.as_bytes()).starts_with("\\x"), "{c:?}");
            assert_eq!(Text::parse(&shown(text.as_bytes())).unwrap().as_bytes(), text.as_bytes());
        }
    }

    #[test]
    fn a_name_that_looks_escaped_differs_from_the_name_it_imitates() {
        assert_ne!(shown(b"a\\n"), shown(b"a\n"));
        assert_ne!(shown(b"\\xff"), shown(b"\xff"));
    }

    #[test]
    fn a_bad_escape_is_refused_with_its_place() {
        for bad in ["ab\\", "ab\\q", "ab\\x", "ab\\x1", "ab\\xg0", "ab\\X41", "ab\\xü"] {
            assert_eq!(Text::parse(bad), Err(BadEscape { offset: 2 }), "{bad}");
        }
    }

    #[test]
    fn json_holds_the_escaped_form_and_reads_back() {
        let text = Text::from(b"/tmp/\x1b]0;x\x07\xff\\");
        let json = serde_json::to_string(&text).unwrap();
        assert_eq!(json, r#""/tmp/\\x1b]0;x\\x07\\xff\\\\""#);
        assert_eq!(serde_json::from_str::<Text>(&json).unwrap(), text);
        let from_value: Text = serde_json::from_value(serde_json::json!("a\\x00")).unwrap();
        assert_eq!(from_value.as_bytes(), b"a\0");
        let refused = serde_json::from_str::<Text>(r#""\\q""#).unwrap_err();
        assert!(refused.to_string().contains("bad escape at byte 0"), "{refused}");
    }

    #[test]
    fn a_path_keeps_its_bytes() {
        let path = Path::new(OsStr::from_bytes(b"/tmp/\xff"));
        assert_eq!(Text::from(path).as_path(), path);
        let set = std::collections::BTreeSet::from([Text::from(path)]);
        assert!(set.contains(b"/tmp/\xff".as_slice()));
    }
}
