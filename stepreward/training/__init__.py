"""Training: the loop, its stages, and the updates of all models."""
