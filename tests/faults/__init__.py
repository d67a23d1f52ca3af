"""Real faults, injected while the store works, and what has to hold after each of them.

Where faults are looked for elsewhere: rows and frames that break a rule in test_rows, test_frames and test_types;
constraints and triggers in test_database_refusals; addresses, passwords in messages, use after fork and a second
process in test_connect; Ctrl-C in test_interrupt, and on the command line in test_cli; frames of any kind on both
engines in test_any_frame; long runs of random faults in tests.torture.

Their place is here, with the parts they belong to: an embedding worker killed in mid-job, and stale vectors over newer
content; folders with names that lead out of them, links, pipes, files half-written, folders that are gone.

What takes too long for every run:

    python -m tests.faults.test_processes URL 200           a process in a commit loop, killed so often
    python -m tests.faults.test_embedding URL 50            embedding workers, killed so often
    python -m tests.faults.test_concurrency URL 8 1000      so many writers with so many overlapping batches
    python -m tests.test_any_frame 10000                    so many frames of any kind, one verdict on both engines
    python -m tests.torture --minutes 30 --seed 1           faults at random

ENTITYFRAMES_TEST_POSTGRES_BIN names the programs of the PostgreSQL that is harmed, ENTITYFRAMES_TEST_POSTGRES a server
for all other tests.
"""
