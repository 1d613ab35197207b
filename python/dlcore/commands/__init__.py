"""The subcommands of `dlcore`, one file each; cli.py imports the one that is asked for."""
