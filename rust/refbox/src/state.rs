//! What is known of a box, written down before anything of it is made; bytes in, records out.
//!
//! Two lines: the intent, with its checksum, which is written once; and the phase, of a fixed width, which one call overwrites.

use std::path::{Component, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::identity::Identity;

const VERSION: u32 = 1;
/// Of the longest phase, in quotes.
const PHASE_WIDTH: usize = 11;

/// Where a run is.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Resources are made.
    Setup,
    /// The payload lives.
    Execution,
    /// A limit was reached, and the payload is killed.
    Timeout,
    /// Resources are taken away.
    Cleanup,
    /// All is gone, and the result is written.
    Verdict,
}

impl Phase {
    fn first() -> Self {
        Phase::Setup
    }

    /// Its line in the state file.
    pub(crate) fn line(self) -> Vec<u8> {
        let text = serde_json::to_string(&self).expect("a phase is a string");
        format!("{text:<PHASE_WIDTH$}\n").into_bytes()
    }
}

/// A box that isn't idle. The file's absence means idle.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    #[serde(rename = "box")]
    pub(crate) number: u16,
    #[serde(skip, default = "Phase::first")]
    pub(crate) phase: Phase,
    pub(crate) supervisor: Identity,
    /// Directories that may exist.
    pub(crate) cgroups: Vec<PathBuf>,
    /// Why the box is out of service.
    pub(crate) quarantined: Option<String>,
}

#[derive(Deserialize, Serialize)]
struct Envelope<'a> {
    version: u32,
    checksum: String,
    #[serde(borrow)]
    state: &'a RawValue,
}

/// The bytes of the state file.
pub(crate) fn encode(state: &State) -> Vec<u8> {
    let body = serde_json::to_string(state).and_then(RawValue::from_string).expect("a state has string keys only");
    let envelope = Envelope { version: VERSION, checksum: checksum(body.get()), state: &body };
    let mut bytes = serde_json::to_vec(&envelope).expect("as above");
    bytes.push(b'\n');
    bytes.extend(state.phase.line());
    bytes
}

/// Where the line of the phase begins in an [`encode`]d state.
pub(crate) fn phase_offset(encoded: &[u8]) -> u64 {
    (encoded.len() - PHASE_WIDTH - 1) as u64
}

/// The state of box `number` whose cgroups are called `name`; or why these bytes are not to be trusted.
pub(crate) fn decode(bytes: &[u8], number: u16, name: &str) -> Result<State, String> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or("no whole line")?;
    let (intent, phase) = (&bytes[..end], &bytes[end + 1..]);
    let envelope: Envelope = serde_json::from_slice(intent).map_err(|e| format!("no state: {e}"))?;
    if envelope.version != VERSION {
        return Err(format!("version {} instead of {VERSION}", envelope.version));
    }
    if envelope.checksum != checksum(envelope.state.get()) {
        return Err("wrong checksum".to_owned());
    }
    let mut state: State = serde_json::from_str(envelope.state.get()).map_err(|e| format!("no state: {e}"))?;
    state.phase = serde_json::from_slice(phase).map_err(|e| format!("no phase: {e}"))?;
    if phase != state.phase.line() {
        return Err("no phase: wrong length".to_owned());
    }
    if state.number != number {
        return Err(format!("is of box {}", state.number));
    }
    if state.supervisor.pid <= 1 {
        return Err(format!("supervisor pid {}", state.supervisor.pid));
    }
    // What is removed by this list has to be recognisably ours.
    for dir in &state.cgroups {
        let plain = dir.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
        if !dir.is_absolute() || !plain || dir.file_name().is_none_or(|last| last != name) {
            return Err(format!("cgroup {}: not one of ours", dir.display()));
        }
    }
    Ok(state)
}

/// FNV-1a: tells damage, not malice; who can write here can do anything.
fn checksum(text: &str) -> String {
    format!("{:016x}", fnv(text.as_bytes()))
}

/// The 64-bit FNV-1a hash.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            number: 3,
            phase: Phase::Execution,
            supervisor: Identity { pid: 77, start_time: 5, boot_id: "b".to_owned() },
            cgroups: vec!["/sys/fs/cgroup/memory/refbox-1-3".into()],
            quarantined: None,
        }
    }

    #[test]
    fn a_state_is_read_back_as_it_was_written() {
        assert_eq!(decode(&encode(&state()), 3, "refbox-1-3"), Ok(state()));
    }

    #[test]
    fn no_truncation_and_no_changed_byte_is_trusted() {
        let whole = encode(&state());
        for length in 0..whole.len() {
            assert!(decode(&whole[..length], 3, "refbox-1-3").is_err(), "{length}");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert!(decode(&changed, 3, "refbox-1-3").is_err(), "{at}");
        }
    }

    #[test]
    fn an_absurd_state_with_a_right_checksum_is_refused() {
        let refused = |change: fn(&mut State)| {
            let mut absurd = state();
            change(&mut absurd);
            decode(&encode(&absurd), 3, "refbox-1-3").unwrap_err()
        };
        assert_eq!(refused(|s| s.number = 4), "is of box 4");
        assert_eq!(refused(|s| s.supervisor.pid = 1), "supervisor pid 1");
        for path in ["/sys/fs/cgroup/memory", "/", "refbox-1-3", "/etc/../refbox-1-3", "/sys/fs/cgroup/refbox-1-33"] {
            let mut absurd = state();
            absurd.cgroups = vec![path.into()];
            let why = decode(&encode(&absurd), 3, "refbox-1-3").unwrap_err();
            assert!(why.contains("not one of ours"), "{path}: {why}");
        }
    }

    #[test]
    fn another_version_is_refused() {
        let text = String::from_utf8(encode(&state())).unwrap().replace("\"version\":1", "\"version\":2");
        assert_eq!(decode(text.as_bytes(), 3, "refbox-1-3").unwrap_err(), "version 2 instead of 1");
    }
}
