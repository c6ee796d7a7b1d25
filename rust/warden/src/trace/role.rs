//! The processes of a run by their names.

use std::collections::{HashMap, HashSet};

use super::points::Point;

/// A process of a run, by the order in which its parent created it.
pub(super) struct Role {
    pub(super) name: String,
    pub(super) run: usize,
    pub(super) children: u32,
    /// Whether it is the payload, or was started by it: its calls are no points.
    pub(super) payload: bool,
    /// Whether it has executed a program; the command's own process changes nothing before.
    pub(super) begun: bool,
    pub(super) counts: HashMap<Point, u32>,
    pub(super) notes: HashSet<&'static str>,
}

impl Role {
    pub(super) fn new(name: String, run: usize, payload: bool) -> Self {
        Role { name, run, children: 0, payload, begun: false, counts: HashMap::new(), notes: HashSet::new() }
    }

    pub(super) fn of_child(parent: &mut Role) -> Self {
        parent.children += 1;
        let mut role = Role::new(format!("{}.{}", parent.name, parent.children), parent.run, parent.payload);
        role.begun = true;
        role
    }
}
