"""Trained agents: loads one from a run, from an exported folder or from the package, plays with it, and shows the credit of its steps."""
