//! The process connector: every fork and exit of the machine, by netlink multicast.
//!
//! Facts from `drivers/connector/cn_proc.c` and `include/uapi/linux/cn_proc.h`: the kernel answers a subscription only
//! in the initial user and pid namespaces and silently ignores it elsewhere. The answer is queued before `send`
//! returns. Events are stamped with `CLOCK_MONOTONIC`. `fork.parent_tgid` is the child's *real parent*: with
//! `CLONE_PARENT` and `CLONE_THREAD` that is the caller's parent, not the caller. Before 6.6 the socket needs
//! `CAP_NET_ADMIN`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};

use super::clock;
use crate::error::in_words;
use crate::own_fd::OwnFd;
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recvfrom, send, socket_with, sockopt,
};

/// `CN_IDX_PROC` and `CN_VAL_PROC`, `include/uapi/linux/connector.h`.
const CN_IDX_PROC: u32 = 1;
const CN_VAL_PROC: u32 = 1;
const PROC_CN_MCAST_LISTEN: u32 = 1;
const PROC_EVENT_NONE: u32 = 0;
const PROC_EVENT_FORK: u32 = 1;
const PROC_EVENT_EXIT: u32 = 0x8000_0000;
const NLMSG_HDR: usize = 16;
const CN_MSG: usize = 20;
/// Holds some 20,000 queued events. Memory is used only while events wait.
const RECEIVE_BUFFER: usize = 16 << 20;

/// One event of the connector, as far as descent needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A process (`child_pid == child_tgid`) or a thread was made.
    Fork { at: u64, parent_tgid: u32, child_pid: u32, child_tgid: u32 },
    /// A thread ended. `parent_tgid` is its real parent by then; 0 if that is not told (Linux before 4.18, or it was reaped
    /// before the kernel told of its end).
    Exit { at: u64, pid: u32, tgid: u32, parent_tgid: u32 },
    /// The answer to a subscription: `ack` is the number in the request plus one.
    Ack { at: u64, ack: u32, errno: u32 },
    /// Any other event.
    Other { at: u64 },
}

impl Event {
    /// When the kernel made it, `CLOCK_MONOTONIC` nanoseconds.
    pub(super) fn at(&self) -> u64 {
        match *self {
            Event::Fork { at, .. } | Event::Exit { at, .. } | Event::Ack { at, .. } | Event::Other { at } => at,
        }
    }
}

/// A message with its place in the sequence that each CPU counts on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) cpu: u32,
    pub(super) seq: u32,
    pub(super) event: Event,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Reads one datagram: `nlmsghdr`, `cn_msg`, `proc_event`. `None`: not a message of the process connector.
pub(super) fn parse(datagram: &[u8]) -> Option<Message> {
    let message = datagram.get(NLMSG_HDR..)?;
    if u32_at(message, 0)? != CN_IDX_PROC || u32_at(message, 4)? != CN_VAL_PROC {
        return None;
    }
    let (seq, ack) = (u32_at(message, 8)?, u32_at(message, 12)?);
    let event = message.get(CN_MSG..)?;
    let (what, cpu, at) = (u32_at(event, 0)?, u32_at(event, 4)?, u64_at(event, 8)?);
    let data = event.get(16..)?;
    let event = match what {
        PROC_EVENT_FORK => Event::Fork {
            at,
            parent_tgid: u32_at(data, 4)?,
            child_pid: u32_at(data, 8)?,
            child_tgid: u32_at(data, 12)?,
        },
        PROC_EVENT_EXIT => Event::Exit {
            at,
            pid: u32_at(data, 0)?,
            tgid: u32_at(data, 4)?,
            // After the exit code, the signal and the parent's thread.
            parent_tgid: u32_at(data, 20).unwrap_or(0),
        },
        PROC_EVENT_NONE => Event::Ack { at, ack, errno: u32_at(data, 0)? },
        _ => Event::Other { at },
    };
    Some(Message { cpu, seq, event })
}

/// Finds gaps in the sequences: the kernel numbers an event before it tries to send it, and reports nothing if it has
/// no memory.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    last: HashMap<u32, u32>,
}

impl Sequence {
    /// Processes one message; false if messages before it are missing.
    pub(super) fn follows(&mut self, message: &Message) -> bool {
        let last = self.last.insert(message.cpu, message.seq);
        last.is_none_or(|last| message.seq == last.wrapping_add(1))
    }
}

/// A subscription.
///
/// It ends by closing the socket, not by `PROC_CN_MCAST_IGNORE`: that lowers a machine-wide count which the kernel has
/// already set to zero if a message once reached nobody (a full buffer is enough), and a negative count makes the next
/// subscriber deaf. After a plain close, the next fork that reaches nobody corrects the count. Receives every type of
/// event: a filter would leave gaps in the sequence that look like losses.
pub(super) struct Connector {
    socket: OwnFd,
    sequence: Sequence,
    lost: Option<&'static str>,
}

static NONCE: AtomicU32 = AtomicU32::new(1);

impl Connector {
    /// Subscribes, and verifies that the kernel answered. The error is the reason for the fallback.
    pub(super) fn subscribe() -> Result<Connector, String> {
        // A fork that reaches nobody sets the kernel's count of listeners to zero, perhaps just after we raised it; a new socket raises it again.
        let mut reason = String::new();
        for _ in 0..3 {
            match Connector::try_subscribe() {
                Ok(Some(connector)) => return Ok(connector),
                Ok(None) => "process connector: no answer; it serves only the initial pid and user namespaces"
                    .clone_into(&mut reason),
                Err(why) => return Err(why),
            }
        }
        Err(reason)
    }

    fn try_subscribe() -> Result<Option<Connector>, String> {
        let failed = |step: &str, errno: Errno| format!("process connector: {step}: {}", in_words(errno));
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(netlink::CONNECTOR))
            .map_err(|e| failed("socket (it exists only in the initial network namespace)", e))?;
        if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER).map_err(|e| failed("receive buffer", e))?;
        }
        bind(&socket, &SocketAddrNetlink::new(0, 1 << (CN_IDX_PROC - 1)))
            .map_err(|e| failed("bind (before Linux 6.6 this needs CAP_NET_ADMIN)", e))?;
        let socket = OwnFd::new(socket).map_err(|e| failed("mark", e))?;
        let mut connector = Connector { socket, sequence: Sequence::default(), lost: None };
        let awaited = connector.listen().map_err(|e| failed("subscribe", e))?;
        let mut answer = None;
        // Other events read here do not matter: the run starts later.
        connector.read(clock::monotonic(), |event| {
            if let Event::Ack { ack, errno, .. } = event
                && ack == awaited
            {
                answer = Some(errno);
            }
        });
        match answer {
            None => Ok(None),
            Some(0) => Ok(Some(connector)),
            Some(errno) => Err(failed("subscribe", Errno::from_raw_os_error(i32::try_from(errno).unwrap_or(0)))),
        }
    }

    /// Requests the events; returns the number that the acknowledgement will have.
    fn listen(&self) -> rustix::io::Result<u32> {
        // Acknowledgements are multicast: those of other subscribers must not be mistaken for ours.
        let nonce = (std::process::id() << 12) ^ NONCE.fetch_add(1, Ordering::Relaxed);
        let words = [CN_IDX_PROC, CN_VAL_PROC, 0, nonce, 4, PROC_CN_MCAST_LISTEN];
        let mut message = Vec::with_capacity(NLMSG_HDR + CN_MSG + 4);
        message.extend_from_slice(&((NLMSG_HDR + CN_MSG + 4) as u32).to_ne_bytes());
        message.extend_from_slice(&3u16.to_ne_bytes()); // NLMSG_DONE, netlink(7)
        message.extend_from_slice(&[0; 10]);
        for word in words {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        send(&self.socket, &message, SendFlags::empty())?;
        Ok(nonce.wrapping_add(1))
    }

    /// Reads every event that was queued before the call, and perhaps some later ones.
    ///
    /// `until` (`CLOCK_MONOTONIC`) bounds the loop on a machine that forks faster than this reads: the queue is in
    /// order, so once an event has a time stamp later than `until`, all that was queued before `until` has been read.
    pub(super) fn read(&mut self, until: u64, mut take: impl FnMut(Event)) {
        let mut datagram = [0u8; 256];
        loop {
            let (n, from) = match recvfrom(&self.socket, &mut datagram[..], RecvFlags::DONTWAIT) {
                Ok((n, _, from)) => (n, from),
                Err(Errno::INTR) => continue,
                Err(Errno::NOBUFS) => {
                    self.lost = Some("process connector: the receive buffer overflowed");
                    continue;
                }
                Err(_) => return,
            };
            let by_kernel = from.and_then(|a| SocketAddrNetlink::try_from(a).ok()).is_some_and(|a| a.pid() == 0);
            let Some(message) = parse(&datagram[..n]).filter(|_| by_kernel) else { continue };
            if !self.sequence.follows(&message) {
                self.lost = Some("process connector: the kernel lost events because it had no memory");
            }
            take(message.event);
            if message.event.at() > until {
                return;
            }
        }
    }

    /// Why events are missing, if any are.
    pub(super) fn lost(&self) -> Option<&'static str> {
        self.lost
    }

    /// Readable when there is something to read.
    pub(super) fn source(&self) -> &OwnFd {
        &self.socket
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer to a subscription as Linux 6.18 sent it.
    const ACK: &[u8] = b"L\x00\x00\x00\x03\x00\x00\x00\x1e\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x1e\x00\x00\x00\x01\x00\x00\x00(\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00S:Zh\x15\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";

    fn message(what: u32, data: [u32; 6]) -> Vec<u8> {
        let mut bytes = ACK.to_vec();
        bytes[36..40].copy_from_slice(&what.to_ne_bytes());
        for (i, word) in data.iter().enumerate() {
            bytes[52 + 4 * i..56 + 4 * i].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn an_acknowledgement_gives_its_number_and_error() {
        let message = parse(ACK).expect("a message");
        assert_eq!((message.cpu, message.seq), (0, 0x1e));
        assert_eq!(message.event, Event::Ack { at: 0x115_685a_3a53, ack: 1, errno: 0 });
    }

    #[test]
    fn a_fork_names_the_parents_group_and_both_ids_of_the_child() {
        let event = parse(&message(PROC_EVENT_FORK, [11, 10, 21, 20, 0, 0])).expect("a message").event;
        assert_eq!(event, Event::Fork { at: 0x115_685a_3a53, parent_tgid: 10, child_pid: 21, child_tgid: 20 });
    }

    #[test]
    fn an_exit_names_thread_group_and_parent() {
        let event = parse(&message(PROC_EVENT_EXIT, [21, 20, 9, 17, 11, 10])).expect("a message").event;
        assert_eq!(event, Event::Exit { at: 0x115_685a_3a53, pid: 21, tgid: 20, parent_tgid: 10 });
    }

    #[test]
    fn truncated_or_foreign_messages_are_no_events() {
        for end in 0..56 {
            assert_eq!(parse(&ACK[..end]), None, "cut at {end}");
        }
        let mut foreign = ACK.to_vec();
        foreign[16] = 7;
        assert_eq!(parse(&foreign), None);
    }

    #[test]
    fn a_hole_in_one_cpus_sequence_is_a_loss_and_other_cpus_do_not_disturb() {
        let at = |cpu, seq| Message { cpu, seq, event: Event::Other { at: 0 } };
        let mut sequence = Sequence::default();
        assert!(sequence.follows(&at(0, 7)));
        assert!(sequence.follows(&at(1, 100)));
        assert!(sequence.follows(&at(0, 8)));
        assert!(!sequence.follows(&at(0, 10)));
        assert!(sequence.follows(&at(1, 101)));
        assert!(sequence.follows(&at(1, 102)));
    }
}
