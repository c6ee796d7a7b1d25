//! Where a process that ends waits for a child that ends by it.
//!
//! A child that has asked for a signal at its parent's end (`PR_SET_PDEATHSIG`, prctl(2)) makes its last calls or not, as
//! the scheduler has it: bwrap's first process exits at the same time as its inner one. Here the child comes first, until
//! it blocks, so that the points of a run are the same each time.

use std::time::Instant;

use super::points::Point;
use super::status::activity;
use super::{PATIENCE, Resume, Tracer};

/// A stopped thread that is about to end its process.
pub(super) struct Parting {
    pub(super) pid: i32,
    since: Instant,
    /// State and context switches of those that end by it, when they were last looked at.
    children: Vec<(i32, String)>,
}

impl Tracer {
    /// Keeps a thread that is at the point of its end if a child ends by it; else it goes on.
    pub(super) fn part(&mut self, pid: i32, point: &Point, resumed: Resume) -> Option<Resume> {
        let stops = self.tasks.get(&pid).is_some_and(|task| self.runs[self.roles[task.role].run].listener.is_none());
        if point.operation != "exit" || !stops || self.armed(pid).is_empty() {
            return Some(resumed);
        }
        self.parting.push(Parting { pid, since: Instant::now(), children: Vec::new() });
        None
    }

    /// Continues those whose children block or have ended.
    pub(super) fn release_parting(&mut self) {
        for at in (0..self.parting.len()).rev() {
            let pid = self.parting[at].pid;
            let armed = self.armed(pid);
            let children: Vec<_> = armed.into_iter().filter_map(|child| Some((child, activity(child)?))).collect();
            // A kill is due, and its victims are the same only if they live until then.
            let held = self.held.as_ref().is_some_and(|held| held.killed.is_none());
            // A child that is stopped is about to go on.
            let blocked = children.iter().all(|(_, activity)| !activity.starts_with(['R', 't']));
            let quiet = blocked && !held && (children.is_empty() || self.parting[at].children == children);
            if quiet || self.parting[at].since.elapsed() > 2 * PATIENCE {
                self.parting.swap_remove(at);
                self.resume(pid, Resume::Run(0));
            } else {
                self.parting[at].children = children;
            }
        }
    }

    /// The threads of the children that have asked for a signal at this one's end, without the payload's.
    fn armed(&self, pid: i32) -> Vec<i32> {
        let Some(own) = self.tasks.get(&pid).map(|task| &self.roles[task.role]) else { return Vec::new() };
        let asks = |point: &Point| point.operation == "prctl" && point.class == "pdeathsig";
        let is_armed = |number: usize| {
            let role = &self.roles[number];
            let parent = role.name.rsplit_once('.').map(|(parent, _)| parent);
            role.run == own.run && parent == Some(&own.name) && !role.payload && role.counts.keys().any(asks)
        };
        self.tasks.iter().filter(|(_, task)| is_armed(task.role)).map(|(pid, _)| *pid).collect()
    }
}
