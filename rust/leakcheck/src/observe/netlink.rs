//! A netlink socket that asks the kernel for whole tables (netlink(7), *dumps*).

use std::io;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketType};
use rustix::net::{connect, recv, send};

use super::remote::Inside;
use crate::parse::netlink::{Message, messages};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;

/// How often a table that changes under the dump is read again.
const ATTEMPTS: usize = 8;

/// Maximum size of one reply, unless a single message is longer (`netlink_dump()`).
const BUFFER: usize = 32 * 1024;

/// Time limit for the kernel's answer. It answers within send(2), so this wait only happens if a reply is lost.
const PATIENCE: Duration = Duration::from_secs(2);

/// A netlink socket of the calling thread's network namespace.
pub(crate) struct Netlink {
    protocol: Option<Protocol>,
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
    /// Used by threads in other namespaces, where a new socket cannot replace it.
    kept: bool,
}

/// Why one pass over a table failed.
enum Failure {
    /// The table changed meanwhile, or the buffer was too short and is longer now.
    Again,
    Io(io::Error),
}

impl<E: Into<io::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Io(error.into())
    }
}

impl Netlink {
    /// Opens a socket of one of the protocols in [`rustix::net::netlink`], none being `NETLINK_ROUTE`.
    pub(super) fn open(inside: Inside<'_>, protocol: Option<Protocol>, kept: bool) -> io::Result<Self> {
        Ok(Netlink { protocol, socket: connected(inside, protocol)?, sequence: 0, buffer: vec![0; BUFFER], kept })
    }

    /// Sends one dump request and returns what `each` makes of the payload of every reply. A dump that the kernel
    /// marks as inconsistent (`NLM_F_DUMP_INTR`) is repeated, a few times.
    pub(crate) fn dump<T>(
        &mut self,
        request_type: u16,
        request: &[u8],
        mut each: impl FnMut(&[u8]) -> io::Result<Option<T>>,
    ) -> io::Result<Vec<T>> {
        for _ in 0..ATTEMPTS {
            match self.pass(request_type, request, &mut each) {
                Ok(table) => return Ok(table),
                Err(Failure::Again) => {}
                Err(Failure::Io(error)) => return Err(error),
            }
        }
        Err(io::Error::other(format!("the list changed during each of {ATTEMPTS} reads")))
    }

    fn pass<T>(
        &mut self,
        request_type: u16,
        request: &[u8],
        each: &mut impl FnMut(&[u8]) -> io::Result<Option<T>>,
    ) -> Result<Vec<T>, Failure> {
        self.sequence = self.sequence.wrapping_add(1);
        send(&self.socket, &frame(request_type, self.sequence, request), SendFlags::empty())?;
        let mut table = Vec::new();
        let mut consistent = true;
        loop {
            let (datagram, length) = match recv(&self.socket, self.buffer.as_mut_slice(), RecvFlags::TRUNC) {
                Ok((filled, length)) => (&self.buffer[..filled], length),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            if length > datagram.len() && self.kept {
                return Err(io::Error::from_raw_os_error(libc::EMSGSIZE).into());
            }
            if length > datagram.len() {
                // The truncated part may have been the end of the dump, so it is unknown when the socket can take the
                // next one.
                self.buffer.resize(length.next_multiple_of(BUFFER), 0);
                self.socket = connected(Inside::Here, self.protocol)?;
                return Err(Failure::Again);
            }
            for message in messages(datagram) {
                let message = message.map_err(malformed)?;
                if message.seq != self.sequence {
                    continue;
                }
                consistent &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        outcome(&message)?;
                        return if consistent { Ok(table) } else { Err(Failure::Again) };
                    }
                    _ => table.extend(each(message.payload)?),
                }
            }
        }
    }
}

fn connected(inside: Inside<'_>, protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let socket = inside.socket(AddressFamily::NETLINK, SocketType::RAW, protocol)?;
    // Connected to the kernel, so that no other process can inject a reply (netlink_getsockbyportid()).
    connect(&socket, &SocketAddrNetlink::new(0, 0))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    Ok(socket)
}

/// `NLMSG_ERROR` and `NLMSG_DONE` both begin with a negative errno or 0.
fn outcome(message: &Message<'_>) -> io::Result<()> {
    match message.payload.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
        Some(code) if code < 0 => Err(io::Error::from_raw_os_error(-code)),
        _ => Ok(()),
    }
}

/// A reply that does not have the documented format.
pub(crate) fn malformed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn frame(request_type: u16, sequence: u32, request: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + request.len());
    bytes.extend((16 + request.len() as u32).to_ne_bytes());
    bytes.extend(request_type.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(request);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTM_GETLINK: u16 = 18;

    #[test]
    fn a_reply_that_is_longer_than_the_buffer_is_asked_for_again() {
        let mut netlink = Netlink::open(Inside::Here, None, false).unwrap();
        netlink.buffer.truncate(64);
        let links = netlink.dump(RTM_GETLINK, &[0; 16], |reply| Ok(Some(reply.len()))).unwrap();
        assert!(!links.is_empty(), "every network namespace has a loopback");
        assert_eq!(netlink.buffer.len() % BUFFER, 0);
        assert_eq!(netlink.dump(RTM_GETLINK, &[0; 16], |_| Ok(Some(()))).unwrap().len(), links.len());
    }

    #[test]
    fn what_the_kernel_refuses_is_an_error_with_its_number() {
        let mut netlink = Netlink::open(Inside::Here, Some(rustix::net::netlink::SOCK_DIAG), false).unwrap();
        let refused = netlink.dump(20, &[255; 56], |_| Ok(Some(()))).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
        let refused = netlink.dump(20, &[], |_| Ok(Some(()))).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn a_malformed_reply_is_an_error_at_once() {
        let mut passes = 0;
        let mut netlink = Netlink::open(Inside::Here, None, false).unwrap();
        let outcome = netlink.dump(RTM_GETLINK, &[0; 16], |_| -> io::Result<Option<()>> {
            passes += 1;
            Err(io::Error::other("malformed"))
        });
        assert_eq!((passes, outcome.is_err()), (1, true));
    }
}
