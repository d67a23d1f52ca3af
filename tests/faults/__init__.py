"""Real faults, injected while the store works, and what has to hold after each of them.

Where faults are looked for elsewhere: rows and frames that break a rule in test_rows, test_frames and test_types;
constraints and triggers in test_database_refusals; addresses, passwords in messages, use after fork and a second
process in test_connect; the interrupted command line in test_cli; long runs of random faults in tests.torture.

Their place is here, with the parts they belong to: an embedding worker killed in mid-job, and stale vectors over newer
content; folders with names that lead out of them, links, pipes, files half-written, folders that are gone.
"""
