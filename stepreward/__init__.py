"""Step-level credit for language-model agents, in JAX."""

__version__ = "0.1.0"
