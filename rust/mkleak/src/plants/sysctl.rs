//! Settings of the machine, increased by one: harmless ones, on which nothing depends.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::Plant;
use crate::error::{Doing, Error, Result};
use crate::stage::{Planting, planting};

pub(super) const PLANTS: &[Plant] = &[
    Plant {
        name: "sysctl-vm",
        needs: &["root"],
        what: "vm.stat_interval one second longer",
        prepare: |_| raised("/proc/sys/vm/stat_interval"),
    },
    Plant {
        name: "sysctl-ksm",
        needs: &["root", "ksm"],
        what: "one millisecond more of sleep for the kernel's page merging",
        prepare: |_| raised("/sys/kernel/mm/ksm/sleep_millisecs"),
    },
];

fn raised(path: &'static str) -> Result<Planting> {
    planting(move |undo| {
        let path = Path::new(path);
        if !path.exists() {
            return Err(Error::Unavailable(format!("this kernel has no {}", path.display())));
        }
        let (before, after) = add(path, 1)?;
        // Decreased by as much, and not restored: so two of these at the same time leave it unchanged.
        undo.push(move || add(path, -1).map(drop));
        Ok(json!({"path": path, "before": before, "after": after}))
    })
}

/// The values before and after.
fn add(path: &Path, by: i64) -> Result<(String, String)> {
    let before = fs::read_to_string(path).doing("read", path)?.trim_end().to_owned();
    let number: i64 = before.parse().map_err(|_| Error::Failed(format!("{}: {before:?}", path.display())))?;
    let after = (number + by).to_string();
    fs::write(path, &after).doing("write", path)?;
    Ok((before, after))
}
