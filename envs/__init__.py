"""Environments that an agent plays by text (and images), and the protocol that they share."""
