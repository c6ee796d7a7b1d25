"""What is on the disk after a power cut: the states that each model allows of canned runs, no more and no fewer."""

from collections.abc import Iterator

from injectors.history import Entry, Event, Files, History, splits, torn
from leakcheck.targets import load
from leakcheck.trials.disk import disks, unsynced
from leakcheck.trials.power import on_disk

TOP = Entry("1", "directory", 0o755, 0, 0, 0, None)

TOP_OF_ANOTHER = Entry("8", "directory", 0o755, 0, 0, 0, None)


def file(inode: str, content: bytes) -> Entry:
    return Entry(inode, "file", 0o600, 0, 0, len(content), content)


def run(*steps: Files | str) -> History:
    """Return the run of these steps: what is there after a change, or the inode that was synced."""

    def events() -> Iterator[Event]:
        files, changes = start, 0
        for step in steps[1:]:
            if isinstance(step, str):
                what = step if "(" in step else ""
                yield Event(files, files, "sync", synced="" if what else step, what=what)
            else:
                changes += 1
                yield Event({"/s": TOP, **step}, files, "write", change=changes)
                files = {"/s": TOP, **step}

    assert not isinstance(steps[0], str)
    start: Files = {"/s": TOP, **steps[0]}
    return History(start, list(events()))


def states(history: History, model: str) -> set[tuple[tuple[str, bytes | None], ...]]:
    found = disks(history, model).values()
    return {tuple(sorted((path, one.content) for path, one in disk.items() if path != "/s")) for disk in found}


def replaced(*between: str) -> History:
    """Return a run that replaces a file by a renamed one; `between` are synced before the rename."""
    old, new = file("2", b"old"), file("3", b"new")
    made = {"/s/a": old, "/s/a.new": file("3", b"")}
    return run({"/s/a": old}, made, {"/s/a": old, "/s/a.new": new}, *between, {"/s/a": new})


def test_a_renamed_file_that_was_not_synced_may_be_empty_or_zeros() -> None:
    found = states(replaced(), "posix")
    assert {(("/s/a", b""),), (("/s/a", bytes(3)),), (("/s/a", b"new"),), (("/s/a", b"old"),)} <= found


def test_a_file_that_was_synced_before_its_rename_is_the_old_or_the_new_one() -> None:
    for model in ("posix", "ext4"):
        contents = {dict(state).get("/s/a") for state in states(replaced("3"), model)}
        assert contents == {b"old", b"new"}, model


def test_ext4_writes_the_data_of_what_replaces_a_file_but_not_of_a_new_name() -> None:
    assert {dict(state).get("/s/a") for state in states(replaced(), "ext4")} == {b"old", b"new"}
    first = run({}, {"/s/n": file("3", b"")}, {"/s/n": file("3", b"new")}, {"/s/a": file("3", b"new")})
    assert (("/s/a", b""),) in states(first, "ext4")


def test_a_name_is_on_the_disk_once_its_directory_is_synced_and_with_ext4_once_any_file_is() -> None:
    made = {"/s/a": file("3", b"new")}
    after = {"/s/a": file("3", b"new"), "/s/b": file("4", b"")}
    for sync, model, sure in (("3", "posix", False), ("1", "posix", True), ("3", "ext4", True)):
        last = disks(run({}, made, sync, after), model)
        assert all("/s/a" in disk for place, disk in last.items() if place.split(".")[1] == "3") is sure, (sync, model)


def test_posix_keeps_no_order_of_names_and_ext4_does() -> None:
    history = run({}, {"/s/a": file("3", b"")}, {"/s/a": file("3", b""), "/s/b": file("4", b"")})
    only_second = (("/s/b", b""),)
    assert only_second in states(history, "posix")
    assert only_second not in states(history, "ext4")


def test_a_write_in_place_is_torn_at_the_end_of_a_sector_only() -> None:
    old, new = b"x" * 1200, b"y" * 1200
    found = {dict(state)["/s/a"] for state in states(run({"/s/a": file("3", old)}, {"/s/a": file("3", new)}), "posix")}
    assert found == {old, new, new[:512] + old[512:], new[:1024] + old[1024:]}


def test_everything_is_on_the_disk_after_sync() -> None:
    made = {"/s/a": file("3", b"new")}
    found = disks(run({}, made, "all", {**made, "/s/b": file("4", b"")}), "posix")
    assert all(dict(disk)["/s/a"].content == b"new" for place, disk in found.items() if place.split(".")[1] == "3")


def test_what_is_made_before_its_state_is_on_the_disk_is_told() -> None:
    def made(*syncs: str, late: tuple[str, ...] = ()) -> list[str]:
        new = file("3", b"new")
        return unsynced(run({}, {"/s/n": new}, *syncs, {"/s/a": new}, *late, "mkdir(/sys/x)"), {"3"})

    assert made("3", late=("1",)) == []
    assert made("all", late=("all",)) == []
    assert made(late=("3", "1")) == []
    assert made("3") == ["mkdir(/sys/x)"]
    assert made(late=("1",)) == ["mkdir(/sys/x)"]


def test_a_torn_file_has_the_first_bytes_of_the_new_content_and_the_rest_of_the_old_one() -> None:
    assert torn(b"12345", b"abcde", 2) == b"ab345"
    assert torn(b"", b"abc", 1) == b"a"
    assert splits(b"", b"x" * 1024) == [512]
    assert splits(b"aXXa", b"aYYa", middle=True) == [2]
    assert splits(b"same", b"same", middle=True) == []


def test_what_is_in_another_watched_directory_is_on_the_disk_too() -> None:
    there = {"/much/longer": TOP_OF_ANOTHER, "/much/longer/b": file("9", b"b")}
    found = disks(run({**there, "/s/a": file("2", b"old")}, {**there, "/s/a": file("2", b"new")}), "posix")
    assert found
    assert all({"/s", "/s/a", *there} == disk.keys() for disk in found.values())


def test_of_a_run_that_has_state_in_memory_too_only_what_is_on_a_disk_outlasts_a_power_cut() -> None:
    both = run({"/s/a": file("2", b"old")}, {"/s/a": file("2", b"old"), "/run/x": file("2", b"lost")})
    assert on_disk(load("runc"), both).paths() == {"/s", "/s/a"}
    assert on_disk(load("refbox"), both).paths() == {"/s", "/s/a", "/run/x"}


def arrives(*synced: str) -> History:
    """Return a run into whose directory a rename brings a file from elsewhere, after syncs of inodes."""
    before = {"/s": TOP}
    after = {"/s": TOP, "/s/a": file("3", b"new")}
    syncs = [Event(before, before, "sync", synced=one) for one in synced]
    made = Event(after, after, "mkdir", what="mkdir(/x)")
    return History(before, [*syncs, Event(after, before, "rename", change=1), made])


def test_what_a_rename_brings_from_elsewhere_is_whole_if_it_was_synced_there() -> None:
    for model in ("posix", "ext4"):
        assert states(arrives("3"), model) == {(), (("/s/a", b"new"),)}, model
        assert (("/s/a", b""),) in states(arrives(), model)
        # Another inode's.
        assert (("/s/a", b""),) in states(arrives("9"), model)


def test_a_state_that_a_rename_brings_from_elsewhere_has_to_be_on_the_disk_too() -> None:
    assert unsynced(arrives("3"), {"3"}) == ["mkdir(/x)"]
    history = arrives("3")
    synced = [*history.events[:2], Event(history.events[1].files, history.events[1].files, "sync", synced="1")]
    assert unsynced(History(history.before, [*synced, history.events[2]]), {"3"}) == []
    assert unsynced(History(history.before, [*synced[1:], history.events[2]]), {"3"}) == ["mkdir(/x)"]
