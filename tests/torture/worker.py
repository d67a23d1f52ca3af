"""A worker of a torture run: calls on shared keys, each logged before it starts and after it returned."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import polars as pl

import entityframes as ef
from tests.torture.targets import Target, open_target

#: Keys that all workers share.
KEYS = 400
SIZES = (1, 5, 40, 400)


class Worker:
    """The calls of one thread."""

    def __init__(self, target: Target, path: Path, seed: str, name: str) -> None:
        self._target, self._name = target, name
        self._log = path.open("a")
        self._rng = random.Random(seed)
        self._numbers = itertools.count()
        self.cancel = threading.Event()

    def work(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            self.cancel.clear()
            self._one_call()

    def _one_call(self) -> None:
        number = f"{self._name}-{next(self._numbers)}"
        count = self._rng.choice(SIZES)
        # Some keys are private to this worker, so that no other one can have written them.
        keys = [f"k{n:04}" for n in self._rng.sample(range(KEYS), count)]
        keys = [key if self._rng.random() < 0.8 else f"own-{self._name}-{key}" for key in keys]
        kind = self._rng.choices(["upsert", "delete", "read"], [6, 2, 1])[0]
        if kind == "read":
            with contextlib.suppress(ef.ConnectionLostError):
                assert self._target.get(keys).height == count
            return
        self._write(call=number, kind=kind, keys=keys, began=time.time())
        try:
            if kind == "delete":
                result: Any = self._target.delete(keys)
            else:
                result = self._target.upsert(keys, number, self._rng.choice([None, 50, 7]), self.cancel)
        except ef.EntityFramesError:
            result = self._target.last_result
        except KeyboardInterrupt:
            # Valid only if it belongs to the interrupted call: otherwise last_result is that of an earlier call.
            result = self._target.last_result
            if result is not None and result.outcomes["id"].to_list() == keys:
                self._log_outcomes(number, result)
            raise
        self._log_outcomes(number, result)

    def _log_outcomes(self, number: str, result: Any) -> None:
        statuses = result.outcomes["status"].cast(pl.String).to_list()
        self._write(
            call=number,
            statuses=statuses,
            ids=result.outcomes["id"].to_list(),
            batches=result.batches,
            ended=time.time(),
        )

    def _write(self, **line: object) -> None:
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()


def _opened(url: str, kind: str, stopping: threading.Event) -> Target | None:
    while not stopping.is_set():
        try:
            return open_target(url, kind, workers=2)
        except ef.ConnectError:
            # The server recovers, or the killed process has not released the file yet.
            stopping.wait(0.05)
    return None


def main(url: str, path: str, seed: str, threads: str, name: str, kind: str) -> None:
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    target = _opened(url, kind, stopping)
    if target is None:
        return
    if target.engine.database.name == "duckdb":
        # Let faults also hit a COMMIT that runs a checkpoint.
        with target.engine.database.file.cursor() as cursor:
            cursor.execute(f"SET wal_autocheckpoint = '{random.Random(seed).choice(['1KB', '256KB', '16MB'])}'")
    # last_result is that of the last call of a store, from any thread, so each thread has its own one on the engine.
    handles = [target.another() for _ in range(int(threads))]
    workers = [
        Worker(handle, Path(f"{path}.{n}.calls"), f"{seed}-{n}", f"{name}.{n}") for n, handle in enumerate(handles)
    ]
    signal.signal(signal.SIGUSR1, lambda *_: [worker.cancel.set() for worker in workers])
    helpers = [threading.Thread(target=_guarded, args=(worker, stopping), daemon=True) for worker in workers[1:]]
    for helper in helpers:
        helper.start()
    try:
        workers[0].work(stopping)
        for helper in helpers:
            helper.join()
        target.close()
    except KeyboardInterrupt:
        # A second signal would end the process while its helpers still work.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        stopping.set()
        for helper in helpers:
            helper.join()
        target.close()


def _guarded(worker: Worker, stopping: threading.Event) -> None:
    try:
        worker.work(stopping)
    except ef.ClosedError:
        pass
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Interrupted while it started or ended.
    with contextlib.suppress(KeyboardInterrupt, ef.ConnectError):
        main(*sys.argv[1:])
