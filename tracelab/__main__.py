"""`python -m tracelab`: the command line, where no script is on the path."""

from tracelab.cli import main

main()
