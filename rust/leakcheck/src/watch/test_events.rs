//! Events of made-up processes, for tests.

use super::connector::Event;
use super::descent::Descent;

pub(super) const ROOT: u32 = 100;

pub(super) fn fork(at: u64, parent: u32, child: u32) -> Event {
    Event::Fork { at, parent_tgid: parent, child_pid: child, child_tgid: child }
}

pub(super) fn thread(at: u64, grandparent: u32, tid: u32, group: u32) -> Event {
    Event::Fork { at, parent_tgid: grandparent, child_pid: tid, child_tgid: group }
}

pub(super) fn exit(at: u64, pid: u32, tgid: u32) -> Event {
    exit_of_child(at, pid, tgid, 0)
}

pub(super) fn exit_of_child(at: u64, pid: u32, tgid: u32, parent_tgid: u32) -> Event {
    Event::Exit { at, pid, tgid, parent_tgid }
}

pub(super) fn after(events: &[Event]) -> Descent {
    let mut descent = Descent::new(ROOT, vec![1, 50], [2, 3].into());
    for event in events {
        descent.apply(*event, &|_| None);
    }
    descent
}
