"""Real faults, injected while the store works, and the invariants that must hold after each of them.

Faults that are tested elsewhere: rows and frames that break a rule in test_rows, test_frames and test_types;
constraints and triggers in test_database_refusals; addresses, passwords in messages, use after fork and a second
process in test_connect; Ctrl-C in test_interrupt, and on the command line in test_cli; frames of any kind on both
engines in test_any_frame; long runs of random faults in tests.torture.

Faults of the file system are in test_folders here: links, pipes, files that change while they are read, full disks,
killed writers. Names that lead out of a folder are in tests.directory.test_paths and test_sync, bombs and broken
front matter in test_markdown, deleted folders, conflicts and everything else that could lose a note in test_sync and
tests.directory.edits. Embedding workers that are killed are in test_embedding.

Longer runs, which are not part of the suite:

    python -m tests.faults.test_processes URL 200           kill a process in a commit loop 200 times
    python -m tests.faults.test_embedding URL 50            kill embedding workers 50 times
    python -m tests.faults.test_concurrency URL 8 1000      8 writers with 1000 overlapping batches
    python -m tests.test_any_frame 10000                    10000 frames of any kind, same result on both engines
    python -m tests.directory.edits --scripts 200           random edits on both sides of a folder, nothing lost
    ENTITYFRAMES_EXAMPLES=100 pytest                        all examples of the property tests instead of a third
    ENTITYFRAMES_KILLS=100 pytest tests/faults/test_folders.py -k killed
    python -m tests.torture --minutes 30 --seed 1           random faults

ENTITYFRAMES_TEST_POSTGRES_BIN is the folder with the PostgreSQL programs for the servers that are killed,
ENTITYFRAMES_TEST_POSTGRES the URL of a server for all other tests.
"""
