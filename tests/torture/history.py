"""The calls that the workers logged, and a check of the store against the reported outcomes."""

from __future__ import annotations

import collections
import json
from dataclasses import dataclass, field
from pathlib import Path

#: Statuses of rows whose write has happened, and of rows whose write may have happened; with others it has not.
DONE = {"created", "updated", "unchanged", "deleted", "missing"}
MAYBE = {"unknown"}


@dataclass
class Write:
    """One row of one call."""

    call: str
    began: float
    ended: float
    #: The content to be stored; None for a deletion.
    content: str | None
    status: str


@dataclass
class History:
    """Every call of a run."""

    writes: dict[str, list[Write]] = field(default_factory=lambda: collections.defaultdict(list))
    calls: int = 0
    batches: int = 0
    reported: int = 0
    #: Calls whose worker was killed before it could log an answer.
    cut_off: int = 0
    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    #: Calls whose answer does not have exactly one outcome for each row.
    unaccounted: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> History:
        """Read the logs of all workers of a run."""
        history = cls()
        for path in folder.glob("*.calls"):
            begun: dict[str, dict] = {}
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    # The last line of a worker that was killed.
                    continue
                if "kind" in entry:
                    begun[entry["call"]] = entry
                else:
                    history._answered(begun.pop(entry["call"]), entry)
            for call in begun.values():
                history.cut_off += 1
                history._add(call, ["unknown"] * len(call["keys"]), float("inf"))
        return history

    def _answered(self, call: dict, answer: dict) -> None:
        self.calls += 1
        self.batches += answer["batches"]
        self.reported += len(answer["statuses"])
        self.statuses.update(answer["statuses"])
        if answer["ids"] != call["keys"]:
            self.unaccounted.append(f"call {call['call']}: {len(answer['ids'])} outcomes for {len(call['keys'])} rows")
            return
        self._add(call, answer["statuses"], answer["ended"])

    def _add(self, call: dict, statuses: list[str], ended: float) -> None:
        for key, status in zip(call["keys"], statuses, strict=True):
            content = None if call["kind"] == "delete" else f"{call['call']} {key}"
            self.writes[key].append(Write(call["call"], call["began"], ended, content, status))

    def check(self, stored: dict[str, str]) -> tuple[list[str], list[str]]:
        """Rows that are lost, and rows whose reported outcome is wrong.

        The content of a key must be that of a possible last write: one that happened or may have happened, and that did
        not end before another write that happened began.

        Args:
            stored: the content of each key.
        """
        lost, misreported = [], list(self.unaccounted)
        for key in stored.keys() | self.writes.keys():
            writes = self.writes.get(key, [])
            content = stored.get(key)
            done = [write for write in writes if write.status in DONE]
            possible = [write for write in writes if write.status in DONE | MAYBE]
            last = [w for w in possible if not any(w.ended < other.began for other in done)]
            if not done and content is None:
                continue
            if any(write.content == content for write in last):
                continue
            problem = f"{key} is {content!r}, expected one of {sorted({str(write.content) for write in last})[:5]}"
            refused = [w for w in writes if w.content == content and w.status not in DONE | MAYBE]
            (misreported if refused and content is not None else lost).append(problem)
        misreported += self._created_twice()
        return lost, misreported

    def _created_twice(self) -> list[str]:
        """Keys that were created more often than they can have been deleted or missing."""
        found = []
        for key, writes in self.writes.items():
            created = sum(write.status == "created" for write in writes)
            absent = 1 + sum(
                write.status == "deleted" or (write.content is None and write.status in MAYBE) for write in writes
            )
            if created > absent:
                found.append(f"{key} was created {created} times and absent {absent} times")
            created_at_most = created + sum(write.content is not None and write.status in MAYBE for write in writes)
            deleted = sum(write.status == "deleted" for write in writes)
            if deleted > created_at_most:
                found.append(f"{key} was deleted {deleted} times and created {created_at_most} times")
        return found
