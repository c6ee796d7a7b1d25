//! What IPC and network namespaces hold, by one thread that enters them one after the other. What PID 1 of an arena is in stays as
//! it is for all the arena's life: there the doors that were opened once are kept, and nobody enters again.

use super::enter::{NsView, inside};
use super::{ipc, net};
use crate::arena::{ArenaView, proc_path};
use crate::error::Result;
use crate::parse::nslink::NsType;

/// Doors of an arena: its IPC and its network namespace by inode, which is theirs while a door is open.
#[derive(Default)]
pub(crate) struct Doors {
    ipc: Option<(u64, ipc::Door)>,
    net: Option<(u64, net::Door)>,
}

enum Seen {
    Ipc(ipc::Seen, Option<ipc::Door>),
    Net(net::Seen, Option<net::Door>),
}

/// What was seen of each namespace of one type.
type Results<T> = Vec<Result<T>>;

/// Looks at these namespaces, of the arena if there is one.
pub(super) fn look(views: &[&NsView], arena: Option<&ArenaView>) -> (Results<ipc::Seen>, Results<net::Seen>) {
    let (mut of_ipc, mut of_net) = (Vec::new(), Vec::new());
    let mut doors = arena.map(ArenaView::doors);
    let mut others = Vec::new();
    for view in views {
        match doors.as_deref_mut().and_then(|doors| doors.look(view)) {
            Some(Seen::Ipc(seen, _)) => of_ipc.push(Ok(seen)),
            Some(Seen::Net(seen, _)) => of_net.push(Ok(seen)),
            None => others.push(*view),
        }
    }
    let first = arena.map(|arena| ["ipc", "net"].map(|t| proc_path(Some(arena), format_args!("1/ns/{t}"))));
    let keep = |view: &NsView| first.as_ref().is_some_and(|paths| paths.contains(&view.path));
    let enter = |view: &NsView| match view.ns_type {
        NsType::Ipc => {
            let door = ipc::Door::open(view);
            Seen::Ipc(door.look(view), keep(view).then_some(door))
        }
        _ => {
            let mut door = net::Door::open(keep(view));
            Seen::Net(door.look(view), keep(view).then_some(door))
        }
    };
    for (view, seen) in others.iter().zip(inside(&others, enter)) {
        match seen {
            Ok(Seen::Ipc(seen, door)) => {
                if let (Some(doors), Some(door)) = (doors.as_deref_mut(), door) {
                    doors.ipc = Some((view.ino, door));
                }
                of_ipc.push(Ok(seen));
            }
            Ok(Seen::Net(seen, door)) => {
                if let (Some(doors), Some(door)) = (doors.as_deref_mut(), door) {
                    doors.net = Some((view.ino, door));
                }
                of_net.push(Ok(seen));
            }
            Err(e) if view.ns_type == NsType::Ipc => of_ipc.push(Err(e)),
            Err(e) => of_net.push(Err(e)),
        }
    }
    (of_ipc, of_net)
}

impl Doors {
    /// None where no door is open, or where it showed less than everything: then it is closed.
    fn look(&mut self, view: &NsView) -> Option<Seen> {
        match view.ns_type {
            NsType::Ipc => {
                let seen = self.ipc.as_ref().filter(|(ino, _)| *ino == view.ino)?.1.look(view);
                if seen.is_whole() {
                    return Some(Seen::Ipc(seen, None));
                }
                self.ipc = None;
            }
            _ => {
                let seen = self.net.as_mut().filter(|(ino, _)| *ino == view.ino)?.1.look(view);
                if seen.is_whole() {
                    return Some(Seen::Net(seen, None));
                }
                self.net = None;
            }
        }
        None
    }
}
