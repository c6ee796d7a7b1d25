//! The record of a box, which is written before anything of the box is created; bytes in, records out.
//!
//! The intent has a checksum and is written once; the phase has a fixed position and width, and one call overwrites it.

use std::path::{Component, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::identity::Identity;
use crate::sabotage::removed;

const VERSION: u32 = 1;
/// Width of the longest phase, in quotes.
const PHASE_WIDTH: usize = 11;
/// The text after the phase.
const TAIL: &[u8] = b"}}\n";

/// The phase of a run.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Resources are created.
    Setup,
    /// The payload lives.
    Execution,
    /// The payload reached a limit, and is killed.
    Timeout,
    /// Resources are removed.
    Cleanup,
    /// All resources are removed, and the result is written.
    Verdict,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Phase::Setup => "setup",
            Phase::Execution => "execution",
            Phase::Timeout => "timeout",
            Phase::Cleanup => "cleanup",
            Phase::Verdict => "verdict",
        })
    }
}

impl Phase {
    fn first() -> Self {
        Phase::Setup
    }

    /// As in the state file.
    pub(crate) fn bytes(self) -> Vec<u8> {
        format!("{:<PHASE_WIDTH$}", format!("\"{self}\"")).into_bytes()
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

#[derive(Deserialize)]
struct Envelope<'a> {
    version: u32,
    checksum: String,
    #[serde(borrow)]
    state: Body<'a>,
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    intent: &'a RawValue,
    phase: Phase,
}

/// The bytes of the state file.
pub(crate) fn encode(state: &State) -> Vec<u8> {
    frame(&serde_json::to_string(state).expect("a state has string keys only"), state.phase)
}

fn frame(intent: &str, phase: Phase) -> Vec<u8> {
    let head =
        format!(r#"{{"version":{VERSION},"checksum":"{}","state":{{"intent":{intent},"phase":"#, checksum(intent));
    [head.as_bytes(), &phase.bytes(), TAIL].concat()
}

/// The offset of the phase in an [`encode`]d state.
pub(crate) fn phase_offset(encoded: &[u8]) -> u64 {
    (encoded.len() - PHASE_WIDTH - TAIL.len()) as u64
}

/// The state of box `number`, whose cgroups have the name `name`; or why these bytes cannot be trusted.
pub(crate) fn decode(bytes: &[u8], number: u16, name: &str) -> Result<State, String> {
    let envelope: Envelope = serde_json::from_slice(bytes).map_err(|e| format!("no state: {e}"))?;
    if envelope.version != VERSION {
        return Err(format!("version {} instead of {VERSION}", envelope.version));
    }
    let Body { intent, phase } = envelope.state;
    if !removed("checksum") && envelope.checksum != checksum(intent.get()) {
        return Err("wrong checksum".to_owned());
    }
    if !(removed("checksum") || removed("frame")) && bytes != frame(intent.get(), phase) {
        return Err("not as it was written".to_owned());
    }
    let mut state: State = serde_json::from_str(intent.get()).map_err(|e| format!("no state: {e}"))?;
    state.phase = phase;
    if state.number != number {
        return Err(format!("is of box {}", state.number));
    }
    if state.supervisor.pid <= 1 {
        return Err(format!("supervisor pid {}", state.supervisor.pid));
    }
    // Recovery removes what is in this list, so it must be recognisable as ours.
    for dir in &state.cgroups {
        let plain = dir.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
        if !dir.is_absolute() || !plain || dir.file_name().is_none_or(|last| last != name) {
            return Err(format!("cgroup {}: not one of ours", dir.display()));
        }
    }
    Ok(state)
}

/// FNV-1a: it detects damage, not malice; a process that can write here can do anything.
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

    #[test]
    fn a_phase_fits_over_any_other() {
        let whole = encode(&state());
        for phase in [Phase::Setup, Phase::Execution, Phase::Timeout, Phase::Cleanup, Phase::Verdict] {
            let (mut changed, at) = (whole.clone(), phase_offset(&whole) as usize);
            changed[at..at + phase.bytes().len()].copy_from_slice(&phase.bytes());
            assert_eq!(decode(&changed, 3, "refbox-1-3"), Ok(State { phase, ..state() }));
        }
    }

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
