"""Estimates a run's memory and time on a TPU slice by compiling its programs for the slice, on a machine without a TPU."""
