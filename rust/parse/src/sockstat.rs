//! `/proc/net/sockstat` and `sockstat6` (proc_pid_net(5)): how many sockets of each protocol a network namespace has.

use super::scan;

/// How many sockets of a protocol, `TCP` or `UDP6`, the protocol's hash tables hold (`sock_prot_inuse_get()`): listening, bound and
/// connected ones. None where the text does not say.
#[must_use]
pub fn in_use(input: &[u8], protocol: &str) -> Option<u64> {
    input.split(|byte| *byte == b'\n').find_map(|line| {
        let rest = line.strip_prefix(protocol.as_bytes())?.strip_prefix(b": inuse ")?;
        scan::unsigned(rest.split(|byte| *byte == b' ').next()?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &[u8] =
        b"sockets: used 139\nTCP: inuse 12 orphan 0 tw 1 alloc 14 mem 151\nUDP: inuse 0 mem 0\nUDPLITE: inuse 0\n\
        RAW: inuse 0\nFRAG: inuse 0 memory 0\n";
    const V6: &[u8] = b"TCP6: inuse 2\nUDP6: inuse 7\nUDPLITE6: inuse 0\nRAW6: inuse 1\nFRAG6: inuse 0 memory 0\n";

    #[test]
    fn distinguishes_protocols_with_a_common_prefix() {
        assert_eq!((in_use(V4, "TCP"), in_use(V4, "UDP"), in_use(V4, "TCP6")), (Some(12), Some(0), None));
        assert_eq!((in_use(V6, "TCP6"), in_use(V6, "UDP6"), in_use(V6, "UDP")), (Some(2), Some(7), None));
    }

    #[test]
    fn what_is_cut_or_malformed_says_nothing() {
        for text in [&b""[..], b"TCP", b"TCP: inuse", b"TCP: inuse ", b"TCP: inuse -1 orphan", b"TCP: inuse x"] {
            assert_eq!(in_use(text, "TCP"), None);
        }
    }
}
