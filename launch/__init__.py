"""One module for each job. Each is a script and a subcommand of `stepreward`."""
