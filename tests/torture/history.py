"""What the workers wrote down, and whether the store holds what they were told."""

from __future__ import annotations

import collections
import json
from dataclasses import dataclass, field
from pathlib import Path

import entityframes as ef

#: Statuses after which a row's write has happened, and may have happened; after the others it has not.
DONE = {"created", "updated", "unchanged", "deleted", "missing"}
MAYBE = {"unknown"}


@dataclass
class Write:
    """One row of one call."""

    call: str
    began: float
    ended: float
    #: The content that was to be stored; None for a deletion.
    content: str | None
    status: str


@dataclass
class History:
    """Every call of a run."""

    writes: dict[str, list[Write]] = field(default_factory=lambda: collections.defaultdict(list))
    calls: int = 0
    batches: int = 0
    told: int = 0
    #: Calls whose worker was killed before it could write down an answer.
    cut_off: int = 0
    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    #: Calls whose answer does not account for each of their rows once.
    unaccounted: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> History:
        """Read what all workers of a run wrote down."""
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
        self.told += len(answer["statuses"])
        self.statuses.update(answer["statuses"])
        if answer["ids"] != call["keys"]:
            self.unaccounted.append(f"call {call['call']}: {len(answer['ids'])} outcomes for {len(call['keys'])} rows")
            return
        self._add(call, answer["statuses"], answer["ended"])

    def _add(self, call: dict, statuses: list[str], ended: float) -> None:
        for key, status in zip(call["keys"], statuses, strict=True):
            content = None if call["kind"] == "delete" else f"{call['call']} {key}"
            self.writes[key].append(Write(call["call"], call["began"], ended, content, status))

    def judge(self, store: ef.EntityStore) -> tuple[list[str], list[str]]:
        """Rows that are lost, and rows of which something else was told than happened.

        The content of a key is that of a write which may have been the last: one that was done or may have been, and
        that was not over before another that was done began.
        """
        stored = dict(store.scan("t").select("id", "content").collect().iter_rows())
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
            said = f"{key} is {content!r}, and may be one of {sorted({str(write.content) for write in last})[:5]}"
            refused = [w for w in writes if w.content == content and w.status not in DONE | MAYBE]
            (misreported if refused and content is not None else lost).append(said)
        misreported += self._created_twice()
        return lost, misreported

    def _created_twice(self) -> list[str]:
        """Keys that were created more often than they can have been gone."""
        found = []
        for key, writes in self.writes.items():
            created = sum(write.status == "created" for write in writes)
            gone = 1 + sum(
                write.status == "deleted" or (write.content is None and write.status in MAYBE) for write in writes
            )
            if created > gone:
                found.append(f"{key} was created {created} times and gone {gone} times")
            born = created + sum(write.content is not None and write.status in MAYBE for write in writes)
            deleted = sum(write.status == "deleted" for write in writes)
            if deleted > born:
                found.append(f"{key} was deleted {deleted} times and created {born} times")
        return found
