//! What is recorded of a run: each point, and, for an explanation, its call with what it is about and what it returned.

use leakcheck_sys::trace::{self, Call};
use serde_json::{Map, Value, json};

use super::decode;
use super::object::{self, Place, find};
use super::points::Point;
use super::request::Victim;
use super::x86_64::{NATIVE, Row, direct, rows, watched};
use super::{Role, Run, points};

/// Points of one run that are recorded; a run with more is not recorded further.
const MOST_POINTS: u32 = 50_000;

/// A recorded call that has not returned.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) number: u32,
    operation: &'static str,
    place: Option<Place>,
    /// Where a waitid(2) writes what it has found.
    found: Option<u64>,
}

/// Records that a thread is about to make the call of a point. Returns what is to be recorded of its end, if it is to be.
pub(super) fn begin(run: &mut Run, role: &Role, pid: i32, call: &Call, point: &Point, ordinal: u32) -> Option<Pending> {
    if !run.request.records() && !run.request.explain {
        return None;
    }
    run.points += 1;
    if run.points == MOST_POINTS + 1 {
        run.note(&json!({"note": format!("only the first {MOST_POINTS} points are known")}));
    }
    if run.points > MOST_POINTS {
        return None;
    }
    let returns = point.returns() && run.listener.is_none();
    let mut line = json!({
        "role": role.name, "operation": point.operation, "class": point.class, "ordinal": ordinal,
        "phase": run.phase.name(), "returns": returns, "ms": run.began.elapsed().as_secs_f64() * 1000.0,
    });
    let mut pending = None;
    if run.request.explain {
        let call = &direct(call, |address| points::word_at(pid, address));
        let row = rows(call, run.request.every()).find(|row| row.when.holds(&call.arguments)).or_else(|| watched(call));
        let place = row.and_then(|row| decode::place(pid, row, point.operation, &call.arguments));
        let place = place.filter(|_| !object::is_slow(pid));
        if let (Value::Object(line), Some(row)) = (&mut line, row) {
            describe(line, run.points, pid, row, call, point, place.as_ref());
        }
        pending = returns.then_some(Pending { number: run.points, operation: point.operation, place, found: None });
    } else if point.operation == "wait" && returns && run.request.records() {
        line["number"] = run.points.into();
        pending = Some(Pending { number: run.points, operation: point.operation, place: None, found: None });
    }
    if let Some(pending) = &mut pending {
        pending.found = waits_by_id(call).then_some(call.arguments[2]);
    }
    run.note(&line);
    pending
}

fn describe(
    line: &mut Map<String, Value>,
    number: u32,
    pid: i32,
    row: &Row,
    call: &Call,
    point: &Point,
    place: Option<&Place>,
) {
    line.insert("number".to_owned(), number.into());
    line.insert("call".to_owned(), decode::text(pid, row, point.operation, &point.class, &call.arguments).into());
    // Without a look, whether it exists is not known.
    if let Some(place) = place {
        line.insert("object".to_owned(), json!(find(pid, place)));
    }
    match point.operation {
        "rename" => {
            drop(line.insert("source".to_owned(), json!(find(pid, &decode::origin(pid, row, &call.arguments)))))
        }
        "shmctl" | "semctl" | "msgctl" if point.class.is_empty() => {
            line.insert("id".to_owned(), call.arguments[0].into());
        }
        // KEYCTL_REVOKE, KEYCTL_UNLINK, KEYCTL_INVALIDATE.
        "keyctl" if [3, 9, 21].contains(&call.arguments[0]) => {
            drop(line.insert("id".to_owned(), json!(call.arguments[1].cast_signed())))
        }
        _ => {}
    }
}

/// Records what a call has returned, and what its object is now.
fn end(run: &mut Run, pending: &Pending, pid: i32, value: i64) {
    let mut line = json!({"returned": pending.number, "value": value});
    if value >= 0 {
        let place = pending.place.as_ref().filter(|_| !object::is_slow(pid));
        let opened =
            matches!(pending.operation, "open" | "open_tree").then(|| Place::Descriptor(value.cast_unsigned()));
        line["now"] = json!(place.and_then(|place| find(pid, opened.as_ref().unwrap_or(place))));
        if matches!(pending.operation, "unshare" | "setns") {
            line["namespaces"] = object::namespaces(pid);
        }
    }
    run.note(&line);
}

/// Records that a call has created a process: that of this number, or one that is no point.
pub(super) fn created(run: &mut Run, number: Option<u32>, creator: &str, role: &str, child: i32) {
    if number.is_none() {
        if !run.request.explain || run.points >= MOST_POINTS {
            return;
        }
        run.points += 1;
    }
    let (pid, namespaces) = (object::arena_pid(child), object::namespaces(child));
    run.note(&match number {
        Some(number) => json!({"returned": number, "value": pid, "child": role, "namespaces": namespaces}),
        None => json!({"made": role, "by": creator, "pid": pid}),
    });
}

/// Records that a process has ended, as wait(2) encodes it.
pub(super) fn ended(run: &mut Run, role: &str, status: i32) {
    // Of a run that goes on after a kill, the payload's end is asked for.
    let goes_on = run.request.fault.as_ref().is_some_and(|fault| fault.victim == Victim::Helper);
    if run.request.explain || goes_on {
        run.note(&json!({"ended": role, "status": status, "ms": run.began.elapsed().as_secs_f64() * 1000.0}));
    }
}

/// Whether a call is waitid(2), which returns 0 whatever it has found.
fn waits_by_id(call: &Call) -> bool {
    (call.arch, call.number) == (NATIVE, 247)
}

/// Records what a stopped thread's call has returned.
pub(super) fn returned(run: &mut Run, pending: &Pending, pid: i32) {
    if pending.operation == "wait" {
        // si_signo is 0 if no child has changed.
        let reaped = match (trace::result(pid), pending.found) {
            (Ok(0), Some(found)) => found == 0 || points::word_at(pid, found) != 0,
            (Ok(value), _) => value > 0,
            (Err(_), _) => return,
        };
        if !reaped {
            run.note(&json!({"idle": pending.number}));
        }
        if !run.request.explain {
            return;
        }
    }
    // A program that was executed has no return.
    match trace::result(pid) {
        Ok(value) => end(run, pending, pid, value),
        Err(_) if pending.operation == "execve" => end(run, pending, pid, 0),
        Err(_) => {}
    }
}
