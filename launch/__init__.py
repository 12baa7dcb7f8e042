"""One module a job. Each is a script, and a subcommand of `stepreward`."""
