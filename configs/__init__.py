"""One file an experiment, each with a function `get_config(preset)`."""
