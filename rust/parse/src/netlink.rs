//! The framing of netlink(7): messages, and attributes (rtnetlink(3)) in them. Numbers are in the machine's order.

use super::error::{ParseError, Result};

/// Both messages and attributes start at multiples of this (`NLMSG_ALIGNTO`, `NLA_ALIGNTO`).
const ALIGN: usize = 4;
/// `sizeof(struct nlmsghdr)`.
const MESSAGE_HEADER: usize = 16;
/// `sizeof(struct nlattr)`.
const ATTRIBUTE_HEADER: usize = 4;
/// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`, which share the field with the type.
const TYPE_FLAGS: u16 = 0xc000;

/// One message of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Message<'a> {
    /// `NLMSG_*` below 16, else the protocol's own.
    pub kind: u16,
    /// `NLM_F_*`.
    pub flags: u16,
    /// Of the request that this answers.
    pub seq: u32,
    /// Port ID of the sender; 0 for the kernel.
    pub pid: u32,
    /// Without header and padding.
    pub payload: &'a [u8],
}

/// One attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attribute<'a> {
    /// The type without its two flag bits.
    pub kind: u16,
    /// Without header and padding; attributes again if nested.
    pub payload: &'a [u8],
}

impl Attribute<'_> {
    /// The payload as a number, if it has exactly that size.
    #[must_use]
    pub fn u32(&self) -> Option<u32> {
        self.payload.try_into().ok().map(u32::from_ne_bytes)
    }

    /// The payload as a number, if it has exactly that size.
    #[must_use]
    pub fn u64(&self) -> Option<u64> {
        self.payload.try_into().ok().map(u64::from_ne_bytes)
    }

    /// The payload as a string, up to its first NUL.
    #[must_use]
    pub fn string(&self) -> &[u8] {
        &self.payload[..memchr::memchr(0, self.payload).unwrap_or(self.payload.len())]
    }
}

/// The messages of a datagram. Stops after the first error, since nothing says where the next one would begin.
#[must_use]
pub fn messages(datagram: &[u8]) -> Messages<'_> {
    Messages { rest: datagram }
}

/// The attributes of a message's payload after its fixed part, or of a nested attribute. Stops after the first
/// error.
#[must_use]
pub fn attributes(payload: &[u8]) -> Attributes<'_> {
    Attributes { rest: payload }
}

/// See [`messages`].
#[derive(Debug, Clone)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

/// See [`attributes`].
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.rest);
        let header = || {
            let (length, body) = rest.split_first_chunk()?;
            let (kind, body) = body.split_first_chunk()?;
            let (flags, body) = body.split_first_chunk()?;
            let (seq, body) = body.split_first_chunk()?;
            let pid = body.first_chunk()?;
            let length = u32::from_ne_bytes(*length).try_into().ok()?;
            let (payload, after) = frame(rest, MESSAGE_HEADER, length)?;
            let message = Message {
                kind: u16::from_ne_bytes(*kind),
                flags: u16::from_ne_bytes(*flags),
                seq: u32::from_ne_bytes(*seq),
                pid: u32::from_ne_bytes(*pid),
                payload,
            };
            Some((message, after))
        };
        let Some((message, after)) = header() else {
            return Some(Err(ParseError::new("netlink message", "nlmsg_len", rest)));
        };
        self.rest = after;
        Some(Ok(message))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.rest);
        let header = || {
            let (length, body) = rest.split_first_chunk()?;
            let kind = body.first_chunk()?;
            let (payload, after) = frame(rest, ATTRIBUTE_HEADER, u16::from_ne_bytes(*length).into())?;
            Some((Attribute { kind: u16::from_ne_bytes(*kind) & !TYPE_FLAGS, payload }, after))
        };
        let Some((attribute, after)) = header() else {
            return Some(Err(ParseError::new("netlink attribute", "nla_len", rest)));
        };
        self.rest = after;
        Some(Ok(attribute))
    }
}

/// Splits `length` bytes, header included, off the input: the payload, and what follows the padding, which the
/// last one may lack.
fn frame(input: &[u8], header: usize, length: usize) -> Option<(&[u8], &[u8])> {
    let payload = input.get(header..length)?;
    let next = length.checked_next_multiple_of(ALIGN)?;
    Some((payload, input.get(next..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(ATTRIBUTE_HEADER + payload.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(payload);
        bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
        bytes
    }

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(MESSAGE_HEADER + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend([kind.to_ne_bytes(), 2_u16.to_ne_bytes()].concat());
        bytes.extend([3_u32.to_ne_bytes(), 4_u32.to_ne_bytes()].concat());
        bytes.extend_from_slice(payload);
        bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
        bytes
    }

    #[test]
    fn messages_and_attributes_are_aligned() {
        let datagram = [message(16, b"abcde"), message(3, b"")].concat();
        let found: Vec<_> = messages(&datagram).map(Result::unwrap).collect();
        assert_eq!(found[0], Message { kind: 16, flags: 2, seq: 3, pid: 4, payload: b"abcde" });
        assert_eq!((found.len(), found[1].kind, found[1].payload), (2, 3, b"".as_slice()));
        let nest = attribute(7, b"lo\0");
        let payload = [attribute(0x8000 | 5, &nest), attribute(0x4000 | 6, &9_u32.to_ne_bytes())].concat();
        let found: Vec<_> = attributes(&payload).map(Result::unwrap).collect();
        assert_eq!((found[0].kind, found[1].kind, found[1].u32()), (5, 6, Some(9)));
        let inner: Vec<_> = attributes(found[0].payload).map(Result::unwrap).collect();
        assert_eq!((inner[0].kind, inner[0].string(), inner[0].u64()), (7, b"lo".as_slice(), None));
    }

    #[test]
    fn the_last_one_may_lack_its_padding() {
        let mut payload = attribute(1, b"x");
        payload.truncate(5);
        assert_eq!(attributes(&payload).map(|attribute| attribute.unwrap().payload).collect::<Vec<_>>(), [b"x"]);
    }

    #[test]
    fn a_malformed_length_stops_with_one_error() {
        for length in [0_u32, 15, 17, u32::MAX] {
            let mut datagram = message(16, b"");
            datagram[..4].copy_from_slice(&length.to_ne_bytes());
            let found: Vec<_> = messages(&datagram).collect();
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].as_ref().unwrap_err().field(), "nlmsg_len");
        }
        for length in [0_u16, 3, 9, u16::MAX] {
            let mut payload = attribute(1, b"abcd");
            payload[..2].copy_from_slice(&length.to_ne_bytes());
            let found: Vec<_> = attributes(&payload).collect();
            assert_eq!((found.len(), found[0].as_ref().unwrap_err().field()), (1, "nla_len"));
        }
        assert!(messages(&[1, 2, 3]).next().unwrap().is_err());
        assert!(attributes(&[1, 2, 3]).next().unwrap().is_err());
    }
}
