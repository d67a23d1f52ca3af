"""Changes by a database owner to the table of entities: policies, triggers, revoked privileges, another shape.

Cases 62 and 64 of the fault catalogue: row-level security, triggers that rewrite keys, tables altered, renamed or
truncated during a run; a role that may only read and write. All of this is specific to PostgreSQL: DuckDB has no
policies, triggers or roles, and a table that a store has open cannot be altered by another process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import polars as pl
import pytest

import entityframes as ef
from tests.faults.invariants import Model, rows
from tests.faults.servers import Server

#: Batches that are sent as one statement, and batches that are copied and staged.
SIZES = (20, 2_500)

Sql = Callable[..., list]


@pytest.fixture
def sql(own_server: Server, database: str) -> Sql:
    """A function that runs SQL as the owner of the store."""
    return lambda *statements: own_server.sql(*statements, database=database)


@pytest.fixture
def user(own_server: Server, database: str, own_store, sql: Sql) -> Iterator[Callable[..., ef.EntityStore]]:
    """A function that opens the store as an ordinary user, with the privileges that the guide names."""
    name = f"user_{database}"
    sql(f"CREATE ROLE {name} LOGIN", *(statement.replace("worker", name) for statement in privileges(database)))
    yield lambda **options: own_store(user=name, **options)
    sql("DROP SCHEMA entityframes CASCADE", f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def privileges(database: str) -> list[str]:
    """The GRANT statements in the guide's page on engines."""
    from tests.test_guide import GUIDE, blocks, text_of

    [block] = [block.code for block in blocks(text_of(GUIDE / "engines.md")) if "GRANT USAGE" in block.code]
    lines = [line.partition("--")[0] for line in block.splitlines()]
    return [part.strip().replace("DATABASE app", f"DATABASE {database}") for part in "\n".join(lines).split(";")
            if part.strip()]  # fmt: skip


def policy(sql: Sql, using: str = "true", check: str = "content NOT LIKE 'forbidden%'") -> None:
    sql(
        "ALTER TABLE entityframes.entities ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY theirs ON entityframes.entities USING ({using}) WITH CHECK ({check})",
    )


def trigger(sql: Sql, body: str, when: str = "BEFORE INSERT OR UPDATE") -> None:
    sql(
        f"CREATE FUNCTION ours() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NEW; END $$",
        f"CREATE TRIGGER ours {when} ON entityframes.entities FOR EACH ROW EXECUTE FUNCTION ours()",
    )


def some_bad(count: int, bad: set[int], text: str = "fine", kind: str = "forbidden") -> pl.DataFrame:
    """Rows in key order, some of whose contents begin with another word."""
    return rows(count, text).sort("id").with_columns(
        content=pl.when(pl.int_range(pl.len()).is_in(list(bad))).then(pl.format(f"{kind} {{}}", "id")).otherwise("content")
    )  # fmt: skip


@pytest.mark.parametrize("count", SIZES)
def test_rows_that_a_policy_rejects(own_store, user, sql: Sql, count: int) -> None:
    """62: WITH CHECK on INSERT and UPDATE, alone or among other policies, fails the affected rows and no others."""
    policy(sql)
    model, store = Model(), user()
    bad = {3, count - 1}
    for text, status in (("fine", "created"), ("changed", "updated")):
        frame = some_bad(count, bad, text)
        result = store.upsert(frame)
        assert result.failed["row"].to_list() == sorted(bad), result
        assert result.failed["sqlstate"].to_list() == ["42501"] * 2
        assert result.failed["error"].str.contains("entities").fill_null(False).all()
        assert result.counts[status] == count - 2
        model.upserted(frame, result)
    only = store.upsert(some_bad(1, {0}))
    assert only.failed["sqlstate"].to_list() == ["42501"]
    model.check(own_store())


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("expecting", [False, True])
def test_rows_that_a_policy_hides(own_store, user, sql: Sql, count: int, expecting: bool) -> None:
    """62: an entity that this user cannot see still exists: its row fails, the others are written."""
    model, owner = Model(), own_store()
    hidden = some_bad(count, {1, 7}, kind="secret")
    model.upserted(hidden, owner.upsert(hidden))
    policy(sql, using="content NOT LIKE 'secret%'", check="true")
    store = user()
    frame = some_bad(count, set(), "changed")
    result = store.plan(frame).apply() if expecting else store.upsert(frame)
    assert result.failed["row"].to_list() == [1, 7], result
    assert result.failed["error"].str.contains("policy").fill_null(False).all()
    assert result.counts["updated"] == count - 2
    model.upserted(frame, result)
    gone = store.delete(frame[:10])
    assert gone.counts["missing"] == 2
    model.deleted(gone)
    model.entities |= {("note", id): (f"secret {id}", {"n": int(id[1:])}) for id in ("e000001", "e000007")}
    model.check(own_store())


@pytest.mark.parametrize("indexed", [False, True])
def test_a_text_search_sees_only_what_the_policy_shows(own_store, user, sql: Sql, indexed: bool) -> None:
    """62: hidden entities are not found and do not count; searches of this user leave the index as it is."""
    owner = own_store()
    owner.upsert(some_bad(20, {1, 7}, kind="secret"))
    if indexed:
        assert owner.search("secret", mode="text", k=50).height == 2
    policy(sql, using="content NOT LIKE 'secret%'", check="true")
    store = user()
    assert store.search("secret", mode="text").is_empty()
    seen = store.search("fine", mode="text", k=50)
    assert seen.height == 18
    assert owner.search("secret", mode="text", k=50).height == 2
    owner.delete(ef.ids("note", ["e000001", "e000007"]))
    assert owner.search("fine", mode="text", k=50).equals(seen)
    owner.upsert_entity("note", "new", "secret fine")
    assert store.search("fine", mode="text", k=50).equals(seen)
    assert store.search("new", mode="text").is_empty()


@pytest.mark.parametrize("rule", ["policy", "trigger"])
def test_rows_that_may_not_be_deleted(own_store, user, sql: Sql, rule: str) -> None:
    """62: an entity that a policy or a trigger retains is neither missing nor deleted."""
    model = Model()
    frame = some_bad(50, {4, 9}, kind="kept")
    model.upserted(frame, own_store().upsert(frame))
    if rule == "policy":
        sql(
            "ALTER TABLE entityframes.entities ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY all_of_it ON entityframes.entities USING (true)",
            "CREATE POLICY keep ON entityframes.entities AS RESTRICTIVE FOR DELETE USING (content NOT LIKE 'kept%')",
        )
    else:
        trigger(sql, "IF OLD.content LIKE 'kept%' THEN RETURN NULL; END IF; RETURN OLD;", "BEFORE DELETE")
    result = user().delete(pl.concat([frame, ef.ids("note", ["none"]).with_columns(content=None, metadata=None)], how="vertical_relaxed"))  # fmt: skip
    assert result.failed["row"].to_list() == [4, 9], result
    assert (result.counts["deleted"], result.counts["missing"]) == (48, 1)
    model.deleted(result)
    model.check(own_store())


@pytest.mark.parametrize("code", ["P0001", "23503", "42501", "UE001"])
def test_a_trigger_that_raises_on_delete(own_store, user, sql: Sql, code: str) -> None:
    """62: only the entities that raise an error are left undeleted."""
    model = Model()
    frame = some_bad(300, {4, 9, 222}, kind="kept")
    model.upserted(frame, own_store().upsert(frame))
    raised = f"IF OLD.content LIKE 'kept%' THEN RAISE E'it is kept:\\nLINE 1 of the rules' USING ERRCODE = '{code}'; END IF; RETURN OLD;"
    trigger(sql, raised, "BEFORE DELETE")
    store = user()
    result = store.delete(frame)
    assert result.failed["row"].to_list() == [4, 9, 222], result
    assert result.failed.select("error", "sqlstate").unique().rows() == [("it is kept: LINE 1 of the rules", code)]
    assert result.batches >= result.outcomes["batch_id"].n_unique()
    model.deleted(result)
    model.check(own_store())
    with pytest.raises(ef.EntityFramesError, match="it is kept"):
        store.delete_entity("note", "e000004")


def test_a_role_that_may_not_delete(own_store, user, sql: Sql, database: str) -> None:
    """64: the error ends the call; a trigger on other operations is not taken for the cause."""
    frame = rows(5)
    own_store().upsert(frame)
    trigger(sql, "", "BEFORE INSERT")
    store = user()
    sql(f"REVOKE DELETE ON entityframes.entities FROM user_{database}")
    with pytest.raises(ef.PermanentError, match="permission denied"):
        store.delete(frame)
    assert store.exists(frame)["exists"].all()


RAISED = {
    "P0001": "RAISE 'refused';",
    "P0002": "RAISE no_data_found;",
    "P0003": "RAISE too_many_rows;",
    "P0004": "ASSERT false, 'refused';",
    "UE001": "RAISE 'refused' USING ERRCODE = 'UE001';",
    "ZX9ZZ": "RAISE 'refused' USING ERRCODE = 'ZX9ZZ';",
    "0A000": "RAISE feature_not_supported;",
    "21000": "PERFORM (SELECT 1 UNION ALL SELECT 2);",
    "22P05": "PERFORM convert_to(U&'\\0416', 'LATIN1');",
    "42501": "RAISE insufficient_privilege;",
    "42P01": "PERFORM * FROM not_there;",
    "42883": "PERFORM not_there(1);",
    "54000": "RAISE program_limit_exceeded;",
    "54001": "RAISE statement_too_complex;",
    "55000": "RAISE object_not_in_prerequisite_state;",
    "2F004": "RAISE reading_sql_data_not_permitted;",
    "38001": "RAISE containing_sql_not_permitted;",
    "27000": "RAISE triggered_data_change_violation;",
    "20000": "CASE 1 WHEN 2 THEN NULL; END CASE;",
}


@pytest.mark.slow
@pytest.mark.parametrize("code", RAISED)
def test_an_error_of_a_trigger_fails_its_row(own_store, user, sql: Sql, code: str) -> None:
    """62: whatever the error, in a small batch and a large one, only the row fails, and so does a run of it alone."""
    trigger(sql, f"IF NEW.content LIKE 'forbidden%' THEN {RAISED[code]} END IF;")
    model, store = Model(), user()
    for count in SIZES:
        frame = some_bad(count, {2, count - 3}, f"text {count}")
        result = store.upsert(frame)
        assert result.failed["row"].to_list() == [2, count - 3], result
        assert result.failed["sqlstate"].to_list() == [code] * 2
        model.upserted(frame, result)
    alone = store.upsert(some_bad(3, {1}, "again"), batch_size=1)
    assert alone.failed["sqlstate"].to_list() == [code], alone
    assert alone.counts["updated"] + alone.counts["created"] == 2
    model.upserted(some_bad(3, {1}, "again"), alone)
    model.check(own_store())


REKEYED = {
    "lower": ("NEW.id := lower(NEW.id);", lambda kind, name: (kind, name.lower())),
    "prefix": ("NEW.id := 'eu-' || NEW.id;", lambda kind, name: (kind, f"eu-{name}")),
    "some": (
        "IF NEW.id LIKE '%7' THEN NEW.entity_type := 'seven'; END IF;",
        lambda kind, name: ("seven" if name.endswith("7") else kind, name),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("how", REKEYED)
@pytest.mark.parametrize("calls", ["upsert", "plan"])
def test_a_trigger_that_rewrites_keys(own_store, sql: Sql, count: int, how: str, calls: str) -> None:
    """62: the outcome reports that the row is stored, and under which key; also when repeated, and with a change."""
    body, key = REKEYED[how]
    trigger(sql, body, "BEFORE INSERT")
    store = own_store()
    write = store.upsert if calls == "upsert" else lambda frame: store.plan(frame).apply()
    contents: dict[tuple[str, str], str] = {}
    for text, status in (("one", "created"), ("one", "unchanged"), ("two", "updated")):
        frame = rows(count, text).with_columns(pl.col("id").str.to_uppercase())
        result = write(frame)
        for row, content in zip(result.outcomes.iter_rows(named=True), frame["content"], strict=True):
            own = row["entity_type"], row["id"]
            other = key(*own)
            if other != own and calls == "plan" and status == "updated":
                # The plan found no entity under that key.
                assert (row["status"], row["sqlstate"]) == ("failed", "EF002"), row
                assert "/".join(other) in row["error"]
                continue
            assert row["status"] == status, row
            assert (row["error"] or "").endswith("/".join(other)) if other != own else row["error"] is None
            contents[other] = content
        stored = store.scan().collect()
        assert {
            (kind, id): text for kind, id, text in stored.select("entity_type", "id", "content").iter_rows()
        } == contents
        # The metadata fields are recorded for the types that were sent.
        found = store.verify(repair=True)
        assert found.is_empty() or (how == "some" and found["check"].cast(pl.String).to_list() == ["field_missing"])
        assert store.stats()["due"].sum() == count


def test_single_calls_with_rewritten_keys(own_store, sql: Sql) -> None:
    """62: one entity, and on_error="raise": stored under the other key; rejected rows leave their batch unwritten."""
    body = "NEW.id := lower(NEW.id); IF NEW.content LIKE 'forbidden%' THEN RAISE 'refused'; END IF;"
    trigger(sql, body, "BEFORE INSERT")
    store = own_store()
    outcome = store.upsert_entity("note", "A", "text")
    assert outcome["status"] == "created"
    assert outcome["error"].endswith("note/a")
    assert store.entity_exists("note", "a")
    frame = some_bad(10, {4}).with_columns(pl.col("id").str.to_uppercase())
    with pytest.raises(ef.RowError, match="refused"):
        store.upsert(frame, on_error="raise")
    assert store.upsert(frame, on_error="rollback").counts["failed"] == 10
    assert store.stats()["entities"].sum() == 1


@pytest.mark.parametrize("count", SIZES)
def test_two_keys_that_become_one(own_store, sql: Sql, count: int) -> None:
    """62: a trigger gives two rows the same key: both are stored, one after the other, and reported so."""
    trigger(sql, "NEW.id := lower(NEW.id);", "BEFORE INSERT")
    store = own_store()
    frame = pl.concat([rows(count, "upper").with_columns(pl.col("id").str.to_uppercase()), rows(count, "lower")])
    result = store.upsert(frame)
    assert result.ok, result
    assert (result.counts["created"], result.counts["updated"]) == (count, count)
    assert result.outcomes["error"].null_count() == count
    assert store.stats()["entities"].sum() == count
    assert store.verify().is_empty()


@pytest.mark.parametrize("count", SIZES)
def test_a_trigger_that_rewrites_contents(own_store, sql: Sql, count: int) -> None:
    """62: verify names the entities whose hash does not match what the trigger stored; a second run changes nothing."""
    trigger(sql, "IF NEW.id LIKE '%7' THEN NEW.content := upper(NEW.content); END IF;")
    store = own_store()
    frame = rows(count)
    result = store.upsert(frame)
    assert result.counts["created"] == count
    assert store.upsert(frame).counts["unchanged"] == count
    found = store.verify()
    wrong = frame.filter(pl.col("id").str.ends_with("7"))["id"].sort().to_list()
    assert found["check"].cast(pl.String).unique().to_list() == ["content_hash"]
    assert found["id"].to_list() == wrong


@pytest.mark.parametrize("change", ["rename", "drop column", "truncate", "add column", "policy"])
def test_the_table_changes_during_a_run(own_store, sql: Sql, change: str) -> None:
    """62: outcomes stay accurate, and the error names the cause."""
    statement = {
        "rename": "ALTER TABLE entityframes.entities RENAME TO hidden",
        "drop column": "ALTER TABLE entityframes.entities DROP COLUMN metadata_hash",
        "truncate": "TRUNCATE entityframes.entities",
        "add column": "ALTER TABLE entityframes.entities ADD COLUMN extra int DEFAULT 7 NOT NULL",
        "policy": "ALTER TABLE entityframes.entities ADD CONSTRAINT allowed_content CHECK (content NOT LIKE 'bad%')",
    }[change]
    store, frame = own_store(workers=1), rows(500).sort("id")

    def progress(done: int, total: int | None) -> None:
        if done == 200:
            sql(statement)

    if change in ("rename", "drop column"):
        with pytest.raises(ef.PermanentError, match="entities|metadata_hash"):
            store.upsert(frame, batch_size=100, progress=progress)
        result = store.last_result
        assert result.counts["created"] >= 200
        assert result.counts["failed"] == 100
        assert result.counts["created"] + result.counts["failed"] + result.counts["cancelled"] == 500
        if change == "rename":
            sql("ALTER TABLE entityframes.hidden RENAME TO entities")
            created = result.outcomes.filter(pl.col("status").cast(pl.String) == "created")
            assert store.stats()["entities"].sum() == created.height
        return
    result = store.upsert(frame, batch_size=100, progress=progress)
    assert result.counts["created"] == 500
    # TRUNCATE removed what had been stored by then; repeating the run shows that.
    again = store.upsert(frame)
    assert (again.counts["created"] > 0) == (change == "truncate")
    assert store.upsert(frame).counts["unchanged"] == 500


@pytest.mark.slow
def test_a_role_that_may_only_read_and_write(own_store, user, sql: Sql, tmp_path) -> None:
    """64: with the privileges in the guide, every call that creates no object works, also in spaces created later."""
    owner = own_store()
    owner.upsert(rows(5))
    owner.embed(ef.HashingEmbedder())
    store = user()
    for count in SIZES:
        assert store.upsert(rows(count, f"text {count}")).ok
        assert store.plan(rows(count, f"planned {count}")).apply().ok
        assert store.upsert(some_bad(count, {1})).ok
    assert store.exists(rows(5))["exists"].all()
    assert store.get(rows(5)).height == 5
    assert store.read("note").height == SIZES[1]
    assert store.embed(ef.HashingEmbedder()).counts["embedded"] == SIZES[1]
    assert store.search("fine", k=3).height == 3
    assert store.search("fine", k=3, mode="text").height == 3
    (tmp_path / "a.md").write_text("a file")
    assert ef.DirectorySync(store, tmp_path, types=["note"]).import_files().ok
    assert store.delete(rows(3)).counts["deleted"] == 3
    assert store.verify().is_empty()
    # A space that the owner creates after the privileges were granted.
    owner.embed(ef.HashingEmbedder(32), space="later")
    store.upsert(rows(20, "newer"))
    assert store.embed(ef.HashingEmbedder(32), space="later").ok
    assert store.stats(space="later")["due"].sum() == 0
