"""Make 100,000 messy rows, import them into ./quickstart.duckdb, and import them again."""

import polars as pl

import entityframes as ef

ROWS = 100_000

notes = pl.DataFrame({"number": range(ROWS)}).select(
    pl.format("note-{}", "number").alias("slug"),
    pl.format("Note {} is about entities, frames and batches. ", "number").repeat_by(5).list.join("").alias("text"),
    (pl.col("number") % 7).alias("rating"),
    pl.date(2026, 1, 1).dt.offset_by(pl.format("{}d", pl.col("number") % 365)).alias("written"),
)
# Three rows that no store should take, and one that is there twice.
notes = pl.concat(
    [
        notes,
        notes.head(1).with_columns(slug=pl.lit(None, pl.String)),
        notes.head(1).with_columns(slug=pl.lit("x" * 2000)),
        notes.head(1).with_columns(text=pl.lit("a NUL: \0"), slug=pl.lit("nul")),
        notes.head(1),
    ]
)

with ef.connect("quickstart.duckdb") as store:
    rows = ef.entities(notes, "note", id="slug", content="text")

    print("First import")
    result = store.upsert(rows)
    print(result)
    print(result.failed.select("row", "error_kind", "error"))

    print("\nThe same again")
    print(store.upsert(rows))

    print("\nTyped, and filtered in the database")
    print(store.scan("note").filter(pl.col("rating") == 6).select("id", "rating", "written").head(3).collect())
    print(store.stats())
