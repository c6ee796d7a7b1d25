//! Just enough netlink to make and remove one object and to learn whether that succeeded (netlink(7)).

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const NLA_F_NESTED: u16 = 1 << 15;
const HEADER: usize = 16;

/// One message under construction: header, fixed part, attributes.
pub(super) struct Message(Vec<u8>);

impl Message {
    /// `flags` besides NLM_F_REQUEST.
    pub(super) fn new(class: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(class.to_ne_bytes());
        bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(fixed);
        Self(bytes)
    }

    pub(super) fn acknowledged(class: u16, flags: u16, fixed: &[u8]) -> Self {
        Self::new(class, flags | NLM_F_ACK, fixed)
    }

    pub(super) fn attribute(mut self, class: u16, value: &[u8]) -> Self {
        let start = self.open(class);
        self.0.extend(value);
        self.close(start)
    }

    pub(super) fn string(self, class: u16, value: &str) -> Self {
        let terminated = [value.as_bytes(), b"\0"].concat();
        self.attribute(class, &terminated)
    }

    /// An attribute that contains what `inner` adds.
    pub(super) fn nested(mut self, class: u16, inner: impl FnOnce(Self) -> Self) -> Self {
        let start = self.open(class | NLA_F_NESTED);
        inner(self).close(start)
    }

    /// Bytes without a header of their own, inside a nested attribute.
    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn open(&mut self, class: u16) -> usize {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(class.to_ne_bytes());
        start
    }

    fn close(mut self, start: usize) -> Self {
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

pub(super) enum Family {
    Route,
    Netfilter,
    Ipsec,
}

/// Sends messages, exactly one of which requests an acknowledgement, and waits for it.
pub(super) fn request(family: &Family, messages: impl IntoIterator<Item = Message>) -> io::Result<()> {
    let protocol = match family {
        // NETLINK_ROUTE is the protocol 0.
        Family::Route => None,
        Family::Netfilter => Some(netlink::NETFILTER),
        Family::Ipsec => Some(netlink::XFRM),
    };
    let socket: OwnedFd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0))?;
    let bytes: Vec<u8> = messages.into_iter().flat_map(Message::finish).collect();
    send(&socket, &bytes, SendFlags::empty())?;
    let mut answer = [0; 8192];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    outcome(&answer[..length])
}

/// An acknowledgement is an error message with the number 0 in it.
fn outcome(answer: &[u8]) -> io::Result<()> {
    let class = answer.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    let errno = answer.get(HEADER..).and_then(|rest| rest.first_chunk()).map(|bytes| i32::from_ne_bytes(*bytes));
    match (class, errno) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(errno)) => Err(io::Error::from_raw_os_error(-errno)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is not an acknowledgement")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_but_their_length_is_not() {
        let bytes = Message::new(16, 0, &[]).string(3, "ab").finish();
        assert_eq!(bytes.len(), HEADER + 8);
        assert_eq!(bytes[..4], 24_u32.to_ne_bytes());
        assert_eq!(bytes[HEADER..HEADER + 2], 7_u16.to_ne_bytes());
        assert_eq!(bytes[HEADER + 4..], *b"ab\0\0");
    }

    #[test]
    fn a_refusal_is_its_errno() {
        let mut answer = Message::new(NLMSG_ERROR, 0, &(-libc::EOPNOTSUPP).to_ne_bytes()).finish();
        assert_eq!(outcome(&answer).unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
        answer[HEADER..HEADER + 4].fill(0);
        assert!(outcome(&answer).is_ok());
        assert!(outcome(&answer[..10]).is_err());
    }
}
