"""`python -m dlcore` is `dlcore`."""

from dlcore.cli import main

main()
