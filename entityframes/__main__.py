"""``python -m entityframes`` is the command line."""

from entityframes.cli import main

main()
