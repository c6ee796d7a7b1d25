"""What clients saw, checked against the model: only what cannot be is a problem."""

from leakcheck.service.history import History, Seen

PLACES = {"queued": "queued", "running": "running", "completed": "succeeded", "cancelled": "cancelled"}


def seen(state: str, sent: float, answered: float, job: str = "1", **more: bool) -> Seen:
    return Seen(job, "alice", state, PLACES.get(state, ""), sent, answered, **more)


def problems(*ones: Seen, limit: int | None = None) -> list[str]:
    history = History(limit)
    for one in ones:
        history.add(one)
    return history.problems()


def test_a_life_from_queue_to_end_is_possible() -> None:
    assert problems(seen("queued", 0, 1, accepted=True), seen("running", 2, 3), seen("completed", 4, 5)) == []


def test_a_run_that_is_queued_again_is_possible() -> None:
    assert problems(seen("running", 0, 1), seen("queued", 2, 3), seen("running", 4, 5), seen("completed", 6, 7)) == []


def test_an_end_is_for_good() -> None:
    assert problems(seen("cancelled", 0, 1), seen("running", 2, 3)) == ["job 1: cancelled, and later running"]
    assert problems(seen("cancelled", 0, 1), seen("completed", 2, 3)) == ["job 1: cancelled, and later completed"]


def test_answers_that_overlap_may_come_in_any_order() -> None:
    assert problems(seen("cancelled", 1, 2), seen("running", 1.5, 3)) == []


def test_an_accepted_job_is_not_lost() -> None:
    assert problems(seen("queued", 0, 1, accepted=True), seen("", 2, 3, lost=True)) == [
        "job 1: accepted, and lost later"
    ]


def test_a_state_must_be_in_the_contract() -> None:
    assert problems(seen("weird", 0, 1)) == ["job 1: state 'weird' is not in the contract"]


def test_the_quota_counts_only_what_is_certainly_unfinished_at_one_instant() -> None:
    two = [seen("queued", 0, 1, "1", accepted=True), seen("queued", 0, 1, "2", accepted=True)]
    assert problems(*two, limit=1) == []
    more = [seen("queued", 2, 3, "1"), seen("running", 2, 3, "2")]
    assert problems(*two, *more, limit=2) == []
    assert problems(*two, *more, limit=1) == ["quota: alice had 2 unfinished jobs at one instant, limit 1"]


def test_one_after_the_other_is_within_the_quota() -> None:
    first = [seen("queued", 0, 1, "1", accepted=True), seen("running", 2, 3, "1"), seen("completed", 4, 5, "1")]
    later = [seen("queued", 4, 5, "2", accepted=True), seen("running", 6, 7, "2")]
    assert problems(*first, *later, limit=1) == []
