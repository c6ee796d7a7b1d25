//! `/proc/keys` and `/proc/key-users` (keyrings(7)).

use super::error::{At, Result};
use super::scan;

/// A key that the reader may view.
///
/// The kernel does not escape descriptions, and add_key(2) takes newlines in them. So a line that has not a key's
/// form continues the description before it; but a description may hold a line that has. Whoever needs
/// certainty asks `KEYCTL_DESCRIBE` (keyctl(2)) for the serial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key<'a> {
    /// The key's ID, printed in hexadecimal.
    pub serial: u32,
    /// `IRDQUNi`, each set or `-`: instantiated, revoked, dead, counts to the quota, under construction, negative,
    /// invalidated.
    pub flags: [u8; 7],
    /// How many kernel references it has.
    pub usage: u32,
    /// `perm`, `expd`, or what is left with its unit: `3d`, `12h`, `5m`, `30s`, `2w`.
    pub timeout: &'a [u8],
    /// Permissions of possessor, user, group and others, a byte each.
    pub perm: u32,
    /// Owner.
    pub uid: u32,
    /// Owner's group; 65534 if it has none or is not mapped.
    pub gid: u32,
    /// The type, cut to nine bytes by the kernel: `keyring`, `user`, `logon`, `dns_resol` …
    pub key_type: &'a [u8],
    /// The description and the type's own remark after a colon (a payload's length, a keyring's count), as printed.
    pub description: &'a [u8],
}

const FORMAT: &str = "keys";

/// Reads the whole of `/proc/keys`.
///
/// # Errors
/// If the first line is no key or the last one was cut.
pub fn parse(input: &[u8]) -> Result<Vec<Key<'_>>> {
    let mut keys: Vec<Key<'_>> = Vec::new();
    // Offsets in `input`: of the current line, and of the last key's description.
    let (mut start, mut description) = (0, 0);
    for at in scan::lines(FORMAT, input)? {
        let end = start + at.line.len();
        start = end + 1;
        match (parse_line(at), keys.last_mut()) {
            (Ok(key), _) => {
                description = end - key.description.len();
                keys.push(key);
            }
            (Err(_), Some(last)) => last.description = &input[description..end],
            (Err(error), None) => return Err(error),
        }
    }
    Ok(keys)
}

fn parse_line(at: At<'_>) -> Result<Key<'_>> {
    let mut rest = at.line;
    let serial = at.need("serial", scan::field(&mut rest).filter(|text| text.len() == 8).and_then(scan::hex))?;
    let flags = at.need("flags", scan::field(&mut rest).and_then(flags))?;
    let usage = at.need("usage", scan::unsigned(scan::word(&mut rest)))?;
    let timeout = at.need("timeout", Some(scan::word(&mut rest)).filter(|text| is_timeout(text)))?;
    let perm = at.need("permissions", scan::hex(scan::word(&mut rest)))?;
    let uid = at.need("uid", scan::wrapped_id(scan::word(&mut rest)))?;
    let gid = at.need("gid", scan::wrapped_id(scan::word(&mut rest)))?;
    let (key_type, description) = at.need("type", rest.strip_prefix(b" ").and_then(split_type))?;
    Ok(Key { serial, flags, usage, timeout, perm, uid, gid, key_type, description })
}

/// `%-9.9s ` and the rest: padding must go to the type, for a description may begin with spaces.
fn split_type(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let (padded, rest) = text.split_at_checked(9)?;
    Some((padded.trim_ascii_end(), rest.strip_prefix(b" ")?))
}

fn flags(text: &[u8]) -> Option<[u8; 7]> {
    let flags: [u8; 7] = text.try_into().ok()?;
    flags.iter().zip(b"IRDQUNi").all(|(flag, name)| flag == name || *flag == b'-').then_some(flags)
}

fn is_timeout(text: &[u8]) -> bool {
    match text {
        b"perm" | b"expd" => true,
        [digits @ .., b's' | b'm' | b'h' | b'd' | b'w'] => scan::unsigned::<u64>(digits).is_some(),
        _ => false,
    }
}

/// What one user's keys use up: a line of `/proc/key-users`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyUser {
    /// The user.
    pub uid: u32,
    /// How many kernel references the record has.
    pub usage: u32,
    /// Keys.
    pub nkeys: u32,
    /// Keys that are instantiated.
    pub nikeys: u32,
    /// Keys that count to the quota.
    pub qnkeys: u32,
    /// Their limit.
    pub maxkeys: u32,
    /// Bytes that count to the quota.
    pub qnbytes: u32,
    /// Their limit.
    pub maxbytes: u32,
}

/// Reads the whole of `/proc/key-users`.
///
/// # Errors
/// If a line has not the form of keyrings(7) or the last one was cut.
pub fn parse_key_users(input: &[u8]) -> Result<Vec<KeyUser>> {
    scan::lines("key-users", input)?.map(parse_user).collect()
}

fn parse_user(at: At<'_>) -> Result<KeyUser> {
    let mut rest = at.line;
    let uid = at.need("uid", scan::word(&mut rest).strip_suffix(b":").and_then(scan::wrapped_id))?;
    let usage = at.need("usage", scan::unsigned(scan::word(&mut rest)))?;
    let (nkeys, nikeys) = at.need("nkeys/nikeys", pair(scan::word(&mut rest)))?;
    let (qnkeys, maxkeys) = at.need("qnkeys/maxkeys", pair(scan::word(&mut rest)))?;
    let (qnbytes, maxbytes) = at.need("qnbytes/maxbytes", pair(scan::word(&mut rest)))?;
    if !scan::trim_blanks(rest).is_empty() {
        return Err(at.error("end of line"));
    }
    Ok(KeyUser { uid, usage, nkeys, nikeys, qnkeys, maxkeys, qnbytes, maxbytes })
}

fn pair(text: &[u8]) -> Option<(u32, u32)> {
    let (used, limit) = scan::split_once(text, b'/')?;
    Some((scan::unsigned(used)?, scan::unsigned(limit)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &[u8] = b"03d9dcdd I--Q---     1 perm 1f3f0000     0 65534 keyring   _uid_ses.0: 1\n\
23845f62 I------     1 perm 1f0b0000     0     0 keyring   .builtin_trusted_keys: empty\n\
2ab41a57 I--Q--i   100   3d 3f010000 -1294967296    -1 dns_resol  a\nb: c\n\nx: 7\n\
3c77bcd6 I------     1 expd 1f030000     0     0 user      : 0\n";

    #[test]
    fn reads_a_keyring() {
        let expected = Key {
            serial: 0x03d9_dcdd,
            flags: *b"I--Q---",
            usage: 1,
            timeout: b"perm",
            perm: 0x1f3f_0000,
            uid: 0,
            gid: 65534,
            key_type: b"keyring",
            description: b"_uid_ses.0: 1",
        };
        assert_eq!(parse(KEYS).unwrap()[0], expected);
    }

    #[test]
    fn a_description_may_begin_with_a_space_and_go_on_after_newlines() {
        let keys = parse(KEYS).unwrap();
        assert_eq!(keys.len(), 4);
        assert_eq!((keys[2].key_type, keys[2].timeout), (b"dns_resol".as_slice(), b"3d".as_slice()));
        assert_eq!(keys[2].description, b" a\nb: c\n\nx: 7");
        assert_eq!(keys[3].description, b": 0");
    }

    #[test]
    fn ids_above_the_signed_range_come_back() {
        let key = parse(KEYS).unwrap()[2];
        assert_eq!((key.uid, key.gid), (3_000_000_000, u32::MAX));
    }

    #[test]
    fn reads_the_quota_of_each_user() {
        let users =
            parse_key_users(b"    0:     9 8/8 3/1000000 40/25000000\n 1000:     2 1/1 1/200 9/20000\n").unwrap();
        let root = KeyUser {
            uid: 0,
            usage: 9,
            nkeys: 8,
            nikeys: 8,
            qnkeys: 3,
            maxkeys: 1_000_000,
            qnbytes: 40,
            maxbytes: 25_000_000,
        };
        assert_eq!((users[0], users[1].uid), (root, 1000));
    }

    #[test]
    fn an_error_names_the_column() {
        for (line, field) in [
            (&b"\n"[..], "serial"),
            (b"3d9dcdd I--Q--- 1\n", "serial"),
            (b"03d9dcdd I--Q-- 1\n", "flags"),
            (b"03d9dcdd Q--I--- 1\n", "flags"),
            (b"03d9dcdd I--Q--- x\n", "usage"),
            (b"03d9dcdd I--Q--- 1 soon\n", "timeout"),
            (b"03d9dcdd I--Q--- 1 perm xyz\n", "permissions"),
            (b"03d9dcdd I--Q--- 1 perm 1f3f0000 x\n", "uid"),
            (b"03d9dcdd I--Q--- 1 perm 1f3f0000 0 x\n", "gid"),
            (b"03d9dcdd I--Q--- 1 perm 1f3f0000 0 0 user\n", "type"),
            (b"03d9dcdd I--Q--- 1 perm 1f3f0000 0 0 user      x", "end of line"),
        ] {
            assert_eq!(parse(line).unwrap_err().field(), field);
        }
        assert_eq!(parse_key_users(b"0 1\n").unwrap_err().field(), "uid");
        assert_eq!(parse_key_users(b"0: 1 1\n").unwrap_err().field(), "nkeys/nikeys");
        assert_eq!(parse_key_users(b"0: 1 1/1 1/1 1/1 1\n").unwrap_err().field(), "end of line");
    }
}
