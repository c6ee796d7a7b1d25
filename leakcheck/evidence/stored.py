"""The trials of a run as a sequence that is read from its store: memory does not grow with their number."""

from collections.abc import Collection, Iterator
from typing import Any, overload

import msgspec

from leakcheck.campaigns.recording import StoredTrials
from leakcheck.evidence.database import Database
from leakcheck.trials.record import Record

_PAGE = 500
_BATCH = 500


class StoredRecords(StoredTrials):
    """The submissions of a run of `count` ones so far. `began` is when it began, on this process's monotonic clock."""

    def __init__(self, database: Database, run: int, began: float) -> None:
        self._database, self._run = database, run
        self.began = began
        self._count = int(database.rows("SELECT count(*) FROM trials WHERE run = ?", [run])[0][0])

    def append(self, trial: Record) -> None:
        """Count one more; the recording writes it."""
        del trial
        self._count += 1

    def drop(self, numbers: Collection[int]) -> None:
        """Remove those of these numbers: they are made again."""
        every = sorted(numbers)
        for at in range(0, len(every), _BATCH):
            some = every[at : at + _BATCH]
            marks = ", ".join("?" * len(some))
            self._database.change((f"DELETE FROM trials WHERE run = ? AND number IN ({marks})", [self._run, *some]))
        self._count -= len(every)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return [*self][index]

    def __iter__(self) -> Iterator[Record]:
        last = -1
        while True:
            rows = self._database.rows(
                "SELECT number, at_s, trial FROM trials WHERE run = ? AND number > ? ORDER BY number LIMIT ?",
                [self._run, last, _PAGE],
            )
            for number, at, text in rows:
                last = number
                # Its own clock may be that of another boot.
                yield msgspec.structs.replace(msgspec.json.decode(text, type=Record), ended_s=self.began + at)
            if not rows:
                return
