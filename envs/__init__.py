"""Environments that an agent plays by text (and images), and the protocol that they share."""

if __name__ == "envs":  # imported from a checkout by the folder's own name
    from stepreward.envs._alias import register

    register()
