"""Environments that an agent plays through text (and images), and the protocol that they share."""

if __name__ == "envs":  # imported in a checkout as `envs`, not as `stepreward.envs`
    from stepreward.envs._alias import register

    register()
