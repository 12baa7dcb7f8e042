"""The random streams of a run, by name. Two draws share a stream only where they share its name and every index.

A draw depends on the run's seed, the number of its stream and its indices, never on what was drawn before. So a resumed run repeats
the draws of the run that was killed, and adding another stream does not change these draws.
"""

from __future__ import annotations

import jax
import numpy as np

# NumPy generators on the host.
HOST = {
    "demonstrations": 1,  # ties among the expert's best actions; index: task
    "sft": 2,  # rows of an update; index: update
    "prm_warmup": 3,  # mini-batches of the PRM before the first iteration; index: batch
    "prm": 4,  # mini-batches of the PRM; index: iteration
    "policy": 5,  # rows of the policy's updates; index: iteration; with a second index of 1, rows of a separate critic
    "credit": 6,  # what a credit method draws, such as a permutation of steps; index: iteration
    "estimator": 7,  # episodes of the estimator's updates; index: epoch
    "estimator_held_out": 8,  # the choice of the estimator's held-out tasks
    "offline": 9,  # the order of the explored tasks in an offline run
    "estimator_refresh": 10,  # episodes of a refresh of the estimator; index: iterations finished
    "preference": 12,  # pairs of an epoch; index: round and epoch
    "sft_dropout": 11,  # the adapters' dropout in supervised updates
    "discriminator": 30,  # demonstrations and mini-batches of the discriminator; index: iteration
}
# JAX keys, folded into the run's key.
DEVICE = {
    "policy_weights": 0,  # random first weights
    "prm_warmup": 1,  # answers before the first iteration; index: batch
    "train": 2,  # answers of an iteration; index: iteration
    "evaluate": 3,  # answers of every evaluation: the same draws each time
    "explore": 4,  # answers of an exploration; index: part
    "critic_head": 5,
    "estimator_head": 6,
    "adapters": 7,
    "prm_weights": 8,  # of a PRM of its own shape
    "preference": 9,  # answers while pairs are collected; index: round and part
    "filter": 20,  # answers in the further groups of an iteration; index: iteration; with a second index, the round
    "discriminator_head": 30,
}
# Seeds of tasks.
TASKS = {"demonstrations": 1, "train": 2, "prm_warmup": 3, "held_out": 4, "explore": 5, "pictures": 6, "preference": 7, "filter": 20}


def host(seed: int, stream: str, *index: int) -> list[int]:
    """The entropy of a NumPy generator of a stream, for `np.random.default_rng`."""
    return [seed, HOST[stream], *index]


def device(key: jax.Array, stream: str, *index: int) -> jax.Array:
    """The JAX key of a stream.

    Args:
      key: the run's key, `jax.random.key(seed)`.
    """
    for number in (DEVICE[stream], *index):
        key = jax.random.fold_in(key, number)
    return key


def task(seed: int, stream: str, *index: int) -> int:
    """The seed of a task, in [0, 2³²). The held-out tasks and the pictures that are measured are the same for every seed."""
    entropy = [0 if stream in ("held_out", "pictures") else seed, TASKS[stream], *index]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint32)[0])
