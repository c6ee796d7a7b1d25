"""The life of what a run left: which call made it, and which one removes it in a run without the fault.

What is the same thing in two calls of a run is decided by its identity alone: device and inode, id of a mount, number
of a process, inode of a namespace. Between two runs, only the names of the points are compared.
"""

import signal
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from leakcheck.trials.calls import Call, Ended, Event, Fired, Made
from leakcheck.trials.effects import Key, creates, inode, removes, touched
from leakcheck.trials.explanation import Life
from leakcheck.trials.remnant import Remnant

__all__ = ["lives"]

# What exists since the call that made it: an inode or a number of before belongs to something that is gone.
_NEW = ("inode", "named", "mount", "mounted", "process", "namespace")


def lives(
    left: Sequence[Remnant], killed: Sequence[Event], honest: Sequence[Event], hierarchies: Mapping[str, str]
) -> list[Life]:
    """Return the life of each of `left`; `hierarchies` has the device of each cgroup hierarchy.

    `killed` are the events of the run that left it, `honest` those of a run without the fault.
    """
    known = _Run(killed)
    other = _Run(honest)
    return [_life(one, known, other, hierarchies) for one in left]


def _life(one: Remnant, killed: "_Run", honest: "_Run", hierarchies: Mapping[str, str]) -> Life:
    found = Life(kind=one.kind, label=one.label)
    key = killed.key_of(msgspec.json.decode(one.evidence).get("resource", {}), one.kind, hierarchies)
    if key is not None and (made := killed.unseen.get(key)) is not None:
        who = "its payload" if made.role == made.by else f"process {made.by}"
        released, how = honest.end_of_made(made)
        how = f"by a call of {who} that is no point; {how or 'the fault came between them'}"
        return msgspec.structs.replace(found, created=f"{made.stage}:{made.by}/clone", released=released, how=how)
    if key is None or (maker := killed.maker.get(key)) is None:
        return found
    call, after_fault = maker
    tried = [f"{at.text} = {at.result}" for at in killed.of_recovery if key in touched(at)]
    released, how = honest.end_of(call, key)
    if released:
        how = "made after the fault" if after_fault else "the fault came between them"
        if failed := killed.failed_at(released, key):
            how = f"under the fault that call returned {failed}"
    return msgspec.structs.replace(found, created=call.name, released=released, how=how, tried=tried)


class _Run:
    """The calls of a run: what each made, and when it was removed."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.maker: dict[Key, tuple[Call, bool]] = {}
        # Processes of which no call is known that made them.
        self.unseen: dict[Key, Made] = {}
        self.of_recovery = [one for one in events if isinstance(one, Call) and one.point.stage == "recover"]
        self._events = events
        # Every name that an inode had: in another root it has another one.
        self._paths: dict[Key, set[str]] = defaultdict(set)
        self._places = {one.name: at for at, one in enumerate(events) if isinstance(one, Call)}
        fired = False
        last = next((one.stage for one in reversed(events) if isinstance(one, Fired)), None)
        for event in events:
            fired |= isinstance(event, Fired) and event.stage == last
            if isinstance(event, Made):
                self.unseen["process", 0, event.pid] = event
            if isinstance(event, Call):
                # Without results, a call that removes a name may have failed: it did if the name is there at the end.
                # What a recovery removed at last was left before it.
                removed = removes(event) if event.point.stage != "recover" else ()
                for key in [one for one in removed if one[0] != "named"]:
                    self.maker.pop(key, None)
                    self._paths.pop(key, None)
                for key in creates(event):
                    self.unseen.pop(key, None)
                    # Each of the others may have existed before the call that returns it.
                    if key[0] in _NEW or key not in self.maker:
                        self.maker[key] = event, fired
                if event.now is not None:
                    self._paths[inode(event.now)].add(event.now.path)

    def key_of(self, resource: Mapping[str, Any], kind: str, hierarchies: Mapping[str, str]) -> Key | None:
        """Return the identity of a resource of a report, as calls have it; None if it cannot be told."""
        match kind:
            case "ipc" if resource["class"] == "mqueue":
                return ("mqueue", 0, resource["name"].rpartition("/")[2])
            case "ipc" if resource["class"] == "posix-shm":
                return self.key_of({"path": resource["name"], "ino": resource["id"]}, "file", hierarchies)
            case "file":
                # The report has the device of the writable layer. In this run, the path tells which inode is meant.
                same = [k for k, paths in self._paths.items() if resource["path"] in paths and k[2] == resource["ino"]]
                return same[0] if len(same) == 1 else ("named", "", resource["path"])
            case "cgroup":
                return ("inode", hierarchies.get(resource["hierarchy"], ""), resource["ino"])
            case "mount":
                key = ("mount", 0, resource["id"].get("unique", -1))
                return key if key in self.maker else ("mounted", 0, resource["target"])
            case "process":
                return ("process", 0, resource["pid"])
            case "namespace":
                return ("namespace", 0, resource["ino"])
            case "ipc":
                return (resource["class"], 0, resource["id"])
            case "key":
                return ("key", 0, resource["serial"])
            case "lock":
                device = resource["dev"]
                return ("lock", f"{device >> 32}:{device & 0xFFFFFFFF}", resource["ino"])
            case _:
                return None

    def failed_at(self, name: str, key: Key) -> str:
        """Return what the last call of this name, or of this operation on the thing `key`, returned if it failed."""
        operation = name.rpartition("/")[2].partition("(")[0]
        failed = [
            one
            for one in self._events
            if isinstance(one, Call)
            and one.value is not None
            and one.value < 0
            and one.point.stage == name.partition(":")[0]
            and (one.name == name or (one.point.operation == operation and key in touched(one)))
        ]
        return failed[-1].result if failed else ""

    def end_of(self, maker: Call, key: Key) -> tuple[str, str]:
        """Return the call that removes what the same call makes in this run, or else what is to be said of its end."""
        at = self._places.get(maker.name)
        made = self._events[at] if at is not None else None
        if at is None or not isinstance(made, Call):
            return "", "a run without the fault does not make this call"
        # Only what is of the same kind: a clone makes a process and its namespaces.
        keys = {one for one in creates(made) if one[0] == key[0]}
        if not keys:
            return "", "in a run without the fault, this call does not make it"
        if key[0] == "process":
            return self._end_of_role(made.point.stage, made.child, made.value or 0)
        for event in self._events[at + 1 :]:
            if isinstance(event, Call) and keys & set(removes(event)):
                return event.name, ""
            if isinstance(event, Ended) and event.role == made.child and event.stage == made.point.stage:
                return "", f"without the fault, the kernel releases it when process {event.role} has ended"
        if key[0] in ("namespace", "lock", "mount"):
            return "", "no call of a run without the fault releases it: the kernel does, with its last user"
        return "", "no call of a run without the fault releases it"

    def end_of_made(self, made: Made) -> tuple[str, str]:
        """Return the same of a process that a call made which is no point: the last such one of its role."""
        like = [
            one for one in self.unseen.values() if (one.stage, one.role, one.by) == (made.stage, made.role, made.by)
        ]
        if not like:
            return "", "a run without the fault does not make it"
        return self._end_of_role(made.stage, made.role, like[-1].pid)

    def _end_of_role(self, stage: str, role: str, pid: int) -> tuple[str, str]:
        """Return the call that ends process `pid`, the last one of its role, and what is to be said of its end."""
        ends = [one for one in self._events if isinstance(one, Ended) and one.stage == stage]
        code = next((one.code for one in reversed(ends) if one.role == role), None)
        if code is None:
            # Of a command that uses ptrace itself no end is seen, but what a process calls at last is.
            exits = [one for one in self._calls(stage, "exit") if one.point.role == role and not ends]
            return (exits[-1].name, "") if exits else ("", "how it ends without the fault is not seen")
        if code >= 0:
            return "", f"without the fault, this process ends with exit code {code}"
        ended_by = (f"kill({pid}, {_name(-code)})", f"kill(-{pid}, {_name(-code)})")
        kills = [one for one in self._calls(stage, "kill") if one.value == 0 and one.text in ended_by]
        return (kills[-1].name if kills else ""), f"without the fault, this process ends with signal {-code}"

    def _calls(self, stage: str, operation: str) -> list[Call]:
        calls = (one for one in self._events if isinstance(one, Call))
        return [one for one in calls if (one.point.stage, one.point.operation) == (stage, operation)]


def _name(number: int) -> str:
    """Return a signal as calls have it."""
    return signal.Signals(number).name if number in {*signal.Signals} else str(number)
