"""`python -m orchestra`: the command line without its script."""

from orchestra.cli import main

main()
