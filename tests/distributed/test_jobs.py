"""Embedding jobs that several processes share (PostgreSQL)."""

from __future__ import annotations

import entityframes as ef
from entityframes.engines.embedding import Worker
from tests.databases import execute
from tests.distributed.test_partition import notes


def test_jobs_are_split_and_given_back(postgres_url: str) -> None:
    """Split jobs list each key once; the lease of a dead process ends at once, and of another it does not."""
    with ef.connect(postgres_url) as store:
        result = store.upsert(notes(range(25)))
        embedding = store._engine.embedding
        embedding.add_space("small", "model", 3, None)
        assert embedding.split_jobs("small", 10) == 1
        assert embedding.split_jobs("small", 10) == 0
        jobs = store.jobs()
        assert sorted(jobs["entities"]) == [5, 10, 10]
        assert result.outcomes["job_id"][0] in jobs["job_id"].to_list()
        assert jobs["batch_id"].n_unique() == 1
        ids = [id for (ids,) in execute(postgres_url, "SELECT ids FROM entityframes.embedding_jobs") for id in ids]
        assert sorted(ids) == sorted(notes(range(25))["id"])
        assert store.verify().is_empty()
        held = embedding.claim("small", Worker("machine/1/a/0", "machine/1/a/", 60.0))
        others = [embedding.claim("small", Worker("machine/1/b/0", "machine/1/b/", 60.0)) for _ in range(2)]
        assert held is not None
        assert None not in others
        assert embedding.give_back("machine/1/a/") == 1
        again = embedding.claim("small", Worker("machine/1/c/0", "machine/1/c/", 60.0))
        assert (again.job_id, again.taken_over) == (held.job_id, True)
        assert embedding.claim("small", Worker("machine/1/c/1", "machine/1/c/", 60.0)) is None
