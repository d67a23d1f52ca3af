"""Real faults, injected while the store works, and what has to hold after each of them.

Where faults are looked for elsewhere: rows and frames that break a rule in test_rows, test_frames and test_types;
constraints and triggers in test_database_refusals; addresses, passwords in messages, use after fork and a second
process in test_connect; Ctrl-C in test_interrupt, and on the command line in test_cli; frames of any kind on both
engines in test_any_frame; long runs of random faults in tests.torture.

Of folders, the file system's faults are in test_folders here: links, pipes, files that change while they are read, full
disks, killed writers. Names that lead out of a folder are in tests.directory.test_paths and test_sync, bombs and broken
front matter in test_markdown, folders that are gone, conflicts and everything else that could lose a note in test_sync
and tests.directory.edits. Embedding workers that are killed are in test_embedding.

What takes too long for every run:

    python -m tests.faults.test_processes URL 200           a process in a commit loop, killed so often
    python -m tests.faults.test_embedding URL 50            embedding workers, killed so often
    python -m tests.faults.test_concurrency URL 8 1000      so many writers with so many overlapping batches
    python -m tests.test_any_frame 10000                    so many frames of any kind, one verdict on both engines
    python -m tests.directory.edits --scripts 200           random edits on both sides of a folder, nothing lost
    ENTITYFRAMES_EXAMPLES=100 pytest                        all examples of properties, of which each run tries a third
    ENTITYFRAMES_KILLS=100 pytest tests/faults/test_folders.py -k killed
    python -m tests.torture --minutes 30 --seed 1           faults at random

ENTITYFRAMES_TEST_POSTGRES_BIN names the programs of the PostgreSQL that is harmed, ENTITYFRAMES_TEST_POSTGRES a server
for all other tests.
"""
