//! A table of legacy iptables, ip6tables and arptables, as `IPT_SO_GET_ENTRIES` copies it (linux/netfilter_ipv4/ip_tables.h,
//! linux/netfilter_ipv6/ip6_tables.h, linux/netfilter_arp/arp_tables.h, linux/netfilter/x_tables.h). Numbers are in the machine's order.
//!
//! Entries follow each other without names: a chain is where a hook begins, or an entry with the target `ERROR`, which
//! holds the name of a chain that a user made. Jumps lead to offsets.

use std::collections::HashMap;

use super::error::{ParseError, Result};

/// Which of the layouts an entry has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `struct ipt_entry`.
    V4,
    /// `struct ip6t_entry`.
    V6,
    /// `struct arpt_entry`.
    Arp,
}

impl Family {
    /// The length of what selects packets by addresses, where the offsets of target and next entry are, and where the
    /// matches begin, after the counters.
    fn layout(self) -> (usize, usize, usize) {
        match self {
            Family::V4 => (84, 88, 112),
            Family::V6 => (136, 140, 168),
            Family::Arp => (164, 164, 192),
        }
    }

    /// The names of the built-in chains, by the number of the hook.
    fn hooks(self) -> &'static [&'static [u8]] {
        match self {
            Family::V4 | Family::V6 => &[b"PREROUTING", b"INPUT", b"FORWARD", b"OUTPUT", b"POSTROUTING"],
            Family::Arp => &[b"INPUT", b"OUTPUT", b"FORWARD"],
        }
    }
}

/// What a table consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// A chain that a user made.
    Chain(Vec<u8>),
    /// A rule, or the policy of a built-in chain unless it accepts.
    Rule {
        /// The name of its chain.
        chain: Vec<u8>,
        /// The name of its target; of a built-in one `ACCEPT`, `DROP`, `RETURN` or the chain that it jumps to.
        target: Vec<u8>,
        /// All that selects packets and what is done with them, without counters and offsets.
        whole: Vec<u8>,
    },
}

struct Entry<'a> {
    at: usize,
    next: usize,
    selector: &'a [u8],
    matches: &'a [u8],
    target: &'a [u8],
    revision: u8,
    data: &'a [u8],
}

/// `struct xt_entry_target`: size, name of 29 bytes, revision, data.
const TARGET_NAME: usize = 2;
const TARGET_REVISION: usize = 31;
const TARGET_DATA: usize = 32;

/// The chains and rules. `hooks` are the offsets where the built-in chains begin, of those hooks that the table has.
pub fn objects(table: &[u8], family: Family, hooks: [Option<u32>; 5]) -> Result<Vec<Object>> {
    let entries = entries(table, family)?;
    let built_in = |at: usize| hooks.iter().position(|hook| hook.is_some_and(|hook| hook as usize == at));
    // The offset of a chain's first rule: behind the entry with its name.
    let made: HashMap<usize, &[u8]> =
        entries.iter().filter(|e| e.target == b"ERROR").map(|e| (e.next, up_to_nul(e.data))).collect();
    let of_hook = |at: usize| family.hooks().get(built_in(at)?).copied();
    let starts = |at: usize| of_hook(at).or_else(|| made.get(&at).copied());
    let (mut chain, mut of_user, mut found) = (&b""[..], false, Vec::new());
    for (entry, next) in entries.iter().zip(entries.iter().skip(1)) {
        if let Some(name) = starts(entry.at) {
            (chain, of_user) = (name, built_in(entry.at).is_none());
        }
        if entry.target == b"ERROR" {
            found.push(Object::Chain(up_to_nul(entry.data).to_vec()));
            continue;
        }
        let last = next.target == b"ERROR" || built_in(next.at).is_some();
        let target = named(entry, &starts)?;
        // A user's chain ends with a return, a built-in one with its policy.
        if last && (of_user || target == b"ACCEPT") {
            continue;
        }
        let data = if entry.target.is_empty() { &target } else { entry.data };
        let parts = [entry.selector, entry.matches, entry.target, &[entry.revision], data];
        found.push(Object::Rule { chain: chain.to_vec(), whole: parts.concat(), target });
    }
    Ok(found)
}

fn entries(table: &[u8], family: Family) -> Result<Vec<Entry<'_>>> {
    let (selector, offsets, matches) = family.layout();
    let mut entries = Vec::new();
    let mut at = 0;
    while at < table.len() {
        let entry = || {
            let here = table.get(at..)?;
            let [t0, t1, n0, n1] = *here.get(offsets..)?.first_chunk()?;
            let target_at = usize::from(u16::from_ne_bytes([t0, t1]));
            let length = usize::from(u16::from_ne_bytes([n0, n1]));
            let whole = here.get(..length)?;
            let target = whole.get(target_at..)?;
            Some(Entry {
                at,
                next: at + length,
                selector: whole.get(..selector)?,
                matches: whole.get(matches..target_at)?,
                target: up_to_nul(target.get(TARGET_NAME..TARGET_REVISION)?),
                revision: *target.get(TARGET_REVISION)?,
                data: target.get(TARGET_DATA..)?,
            })
        };
        let entry = entry().ok_or_else(|| ParseError::new("table of iptables", "entry", &table[at..]))?;
        at = entry.next;
        entries.push(entry);
    }
    Ok(entries)
}

/// The name of an entry's target. The standard one has none: its data is a verdict, or the offset of a chain.
fn named<'a>(entry: &Entry<'_>, starts: &impl Fn(usize) -> Option<&'a [u8]>) -> Result<Vec<u8>> {
    if !entry.target.is_empty() {
        return Ok(entry.target.to_vec());
    }
    let error = || ParseError::new("table of iptables", "verdict", entry.data);
    let verdict = entry.data.first_chunk().map(|number| i32::from_ne_bytes(*number)).ok_or_else(error)?;
    // -NF_DROP - 1, -NF_ACCEPT - 1, -NF_QUEUE - 1, XT_RETURN
    Ok(match verdict {
        -1 => b"DROP".to_vec(),
        -2 => b"ACCEPT".to_vec(),
        -4 => b"QUEUE".to_vec(),
        -5 => b"RETURN".to_vec(),
        to => match usize::try_from(to) {
            // A jump to the next entry does nothing, as a rule without a target.
            Ok(to) => starts(to).map_or_else(Vec::new, <[u8]>::to_vec),
            Err(_) => return Err(error()),
        },
    })
}

fn up_to_nul(bytes: &[u8]) -> &[u8] {
    &bytes[..memchr::memchr(0, bytes).unwrap_or(bytes.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry of IPv4 from this source address; a verdict is in `data`.
    fn entry(source: u8, target: &[u8], data: &[u8], counter: u8) -> Vec<u8> {
        let mut bytes = vec![0; 112];
        bytes[0] = source;
        bytes[96] = counter;
        let length = (TARGET_DATA + data.len()).next_multiple_of(8);
        bytes[88..90].copy_from_slice(&112_u16.to_ne_bytes());
        bytes[90..92].copy_from_slice(&(112 + length as u16).to_ne_bytes());
        let mut whole = vec![0; length];
        whole[TARGET_NAME..TARGET_NAME + target.len()].copy_from_slice(target);
        whole[TARGET_DATA..TARGET_DATA + data.len()].copy_from_slice(data);
        bytes.extend(whole);
        bytes
    }

    fn verdict(source: u8, verdict: i32) -> Vec<u8> {
        entry(source, b"", &verdict.to_ne_bytes(), 0)
    }

    /// INPUT with these rules and a policy, a user's chain `mine`, and the end.
    fn table(rules: &[Vec<u8>], policy: i32) -> Vec<Object> {
        let mut bytes = rules.concat();
        bytes.extend(verdict(0, policy));
        bytes.extend([entry(0, b"ERROR", b"mine", 0), verdict(9, -1), verdict(0, -5)].concat());
        bytes.extend(entry(0, b"ERROR", b"ERROR", 0));
        objects(&bytes, Family::V4, [None, Some(0), None, None, None]).expect("a table")
    }

    fn shown(objects: &[Object]) -> Vec<String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let each = |object: &Object| match object {
            Object::Chain(name) => text(name),
            Object::Rule { chain, target, whole } => format!("{} {} -> {}", text(chain), whole[0], text(target)),
        };
        objects.iter().map(each).collect()
    }

    #[test]
    fn chains_of_users_rules_and_policies_that_do_not_accept_are_objects() {
        assert_eq!(shown(&table(&[], -2)), ["mine", "mine 9 -> DROP"]);
        let drops = entry(7, b"LOG", b"x", 0);
        assert_eq!(shown(&table(&[drops], -1)), ["INPUT 7 -> LOG", "INPUT 0 -> DROP", "mine", "mine 9 -> DROP"]);
    }

    #[test]
    fn a_jump_is_told_by_its_chain_and_not_by_where_that_is() {
        // The first rule of `mine` is behind the rules, the policy and the entry with its name.
        let jump = |rules: i32| verdict(5, 152 * rules + 152 + 152);
        let one = table(&[jump(1)], -2);
        let two = table(&[verdict(6, -2), jump(2)], -2);
        assert_eq!(shown(&two)[..2], ["INPUT 6 -> ACCEPT", "INPUT 5 -> mine"]);
        assert_eq!(one[0], two[1]);
    }

    #[test]
    fn counters_change_nothing() {
        let counted = |counter| table(&[entry(7, b"LOG", b"x", counter)], -2);
        assert_eq!(counted(0), counted(200));
    }

    #[test]
    fn what_is_cut_or_leads_outside_is_refused() {
        let whole = verdict(1, -2);
        for cut in 1..whole.len() {
            assert!(objects(&whole[..cut], Family::V4, [None; 5]).is_err(), "{cut}");
        }
        let mut none = whole.clone();
        none[90..92].copy_from_slice(&[0, 0]);
        assert!(objects(&none, Family::V4, [None; 5]).is_err(), "an entry without length would never end");
        assert!(objects(&[verdict(1, -9), whole].concat(), Family::V4, [None; 5]).is_err());
    }
}
