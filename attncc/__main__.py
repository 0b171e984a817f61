"""`python -m attncc`: the command line from a checkout that is not installed."""

from attncc.cli import main

main()
