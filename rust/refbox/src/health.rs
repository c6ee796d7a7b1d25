//! Which boxes are usable, as JSON. It takes no lock, so that it does not block a run.

use serde::Serialize;

use crate::error::Result;
use crate::lock::holder;
use crate::state::Phase;
use crate::store::{Found, Store};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Health {
    Healthy,
    Degraded,
    Quarantined,
}

#[derive(Serialize)]
struct BoxHealth {
    #[serde(rename = "box")]
    number: u16,
    status: &'static str,
    phase: Option<Phase>,
    reason: Option<String>,
}

#[derive(Serialize)]
struct Summary {
    status: Health,
    boxes: Vec<BoxHealth>,
}

/// The JSON, and whether all is well.
pub(crate) fn health(store: &Store) -> Result<(String, bool)> {
    let mut worst = Health::Healthy;
    let mut boxes = Vec::new();
    for number in store.boxes()? {
        let holder = holder(&store.lock_path(number)).filter(|holder| holder.lives());
        let (status, phase, reason, health) = match store.read(number)? {
            Found::State(state) if state.quarantined.is_some() => {
                ("quarantined", Some(state.phase), state.quarantined, Health::Quarantined)
            }
            Found::State(state) if holder.is_some() || state.supervisor.lives() => {
                ("busy", Some(state.phase), None, Health::Healthy)
            }
            Found::State(state) => {
                let reason = format!("supervisor {} died; refbox recover --box {number}", state.supervisor.pid);
                ("stale", Some(state.phase), Some(reason), Health::Degraded)
            }
            Found::Corrupt(why) => ("corrupt", None, Some(format!("state file: {why}")), Health::Degraded),
            Found::Idle if holder.is_some() => ("busy", None, None, Health::Healthy),
            Found::Idle => ("idle", None, None, Health::Healthy),
        };
        worst = worst.max(health);
        boxes.push(BoxHealth { number, status, phase, reason });
    }
    let summary = Summary { status: worst, boxes };
    let text = serde_json::to_string(&summary).expect("a summary has string keys only");
    Ok((text, worst == Health::Healthy))
}
