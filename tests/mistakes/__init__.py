"""Plants mistakes in the package, one at a time, and asks whether the tests notice.

``python -m tests.mistakes`` draws single mistakes that a careless maintainer could make, spread over all modules and
``.sql`` files, runs for each the tests that touch its place, and prints those that went unnoticed and a score by
module. It is a run of its own, not part of the suite. mutmut and cosmic-ray were weighed: half of what matters here
is in ``.sql`` files, which neither changes, nor do they know of a lost sort, a join on one column less or a dropped
``FOR UPDATE``; and both leave it to the caller which tests are run, which is most of the work.
"""
