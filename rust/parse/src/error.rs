//! The one error of all parsers.

use crate::text::Text;

/// How much of an offending line an error keeps, in bytes: names can be 4 KiB, and errors are shown.
const EXCERPT_MAX: usize = 96;

/// What every parser here returns.
pub type Result<T> = std::result::Result<T, ParseError>;

/// Input that does not have the form the kernel documents.
///
/// The caller adds the path that it read. One pointer wide, so that the hot parsers return small values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {}: no valid {} in `{}`{}", .0.format, .0.field, .0.excerpt, if .0.cut { "…" } else { "" })]
pub struct ParseError(Box<Detail>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Detail {
    format: &'static str,
    field: &'static str,
    excerpt: Text,
    cut: bool,
}

impl ParseError {
    #[cold]
    pub(super) fn new(format: &'static str, field: &'static str, line: &[u8]) -> Self {
        let excerpt = &line[..line.len().min(EXCERPT_MAX)];
        let cut = excerpt.len() < line.len();
        Self(Box::new(Detail { format, field, excerpt: excerpt.into(), cut }))
    }

    /// Which format was expected, by the kernel's name for it: `stat`, `mountinfo` …
    #[must_use]
    pub fn format(&self) -> &'static str {
        self.0.format
    }

    /// The first field that was missing or had no valid value.
    #[must_use]
    pub fn field(&self) -> &'static str {
        self.0.field
    }

    /// The beginning of the offending line or message: at most 96 bytes.
    #[must_use]
    pub fn excerpt(&self) -> &Text {
        &self.0.excerpt
    }
}

/// As a failed read of a file whose content is not what the kernel documents.
impl From<ParseError> for std::io::Error {
    fn from(error: ParseError) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// Where a parser is, for errors about it.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) format: &'static str,
    pub(super) line: &'a [u8],
}

impl At<'_> {
    #[cold]
    pub(super) fn error(self, field: &'static str) -> ParseError {
        ParseError::new(self.format, field, self.line)
    }

    /// The value, or an error about the field that should have held it.
    pub(super) fn need<T>(self, field: &'static str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.error(field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_format_and_field_and_quotes_a_bounded_excerpt() {
        let error = ParseError::new("stat", "ppid", b"1 (\x1b[2J) R");
        assert_eq!(error.to_string(), "malformed stat: no valid ppid in `1 (\\x1b[2J) R`");
        let long = ParseError::new("maps", "dev", &[b'x'; 100_000]);
        assert_eq!(long.excerpt().as_bytes().len(), 96);
        assert!(long.to_string().ends_with("x`…"), "{long}");
    }

    #[test]
    fn a_result_costs_the_hot_path_one_pointer() {
        assert_eq!(size_of::<ParseError>(), size_of::<usize>());
    }
}
