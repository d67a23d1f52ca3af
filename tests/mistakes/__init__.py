"""Mutation tests: inserts mistakes into the package, one at a time, and checks whether the tests notice.

``python -m tests.mistakes`` draws single mistakes that a careless maintainer could make, spread over all modules and
``.sql`` files. For each mistake it runs the tests that touch its location. It prints the mistakes that went unnoticed
and a score for each module. This is a separate run, not part of the suite. mutmut and cosmic-ray were considered, but
half of the important code is in ``.sql`` files, which neither of them changes, and they have no mutations such as a
missing sort, a join on one column less or a dropped ``FOR UPDATE``; and both leave the selection of tests, which is
most of the work, to the caller.
"""
