"""Held-out tasks and picture sizes are found through the pool: in rounds, without failures, and within limits."""

import logging

import numpy as np
import pytest

from stepreward.envs import sokoban
from stepreward.rollout.checked import checked
from stepreward.rollout.environments import EnvironmentPool
from stepreward.training.held_out import choose_held_out, first_pictures
from stepreward.training.streams import task as task_seed


class Numbers:
    """Its state is the seed mod `states`; resets of the seeds in `broken` raise; pictures have a side of 4 or 8."""

    capabilities = frozenset({"image"})
    resets: list = []

    def __init__(self, states, broken=(), capabilities=("image",)):
        self.states, self.broken, self.capabilities = states, broken, frozenset(capabilities)

    def reset(self, *, seed, options):
        self.resets.append((seed, options["split"]))
        if seed in self.broken:
            raise OSError(f"no game {seed}")
        side = 4 if seed % 10 else 8
        info = {"won": False, "executed": True, "state_key": str(seed % self.states)}
        return {"text": "x", "image": np.zeros((side, side, 3), np.uint8)}, info

    def close(self):
        pass


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.setattr(Numbers, "resets", [])
    return lambda *settings: EnvironmentPool(checked(lambda: Numbers(*settings)))


def seeds(tasks):
    assert all(task.split == "held_out" for task in tasks)
    assert [task.group for task in tasks] == list(range(len(tasks)))
    return [task.seed for task in tasks]


def test_the_tasks_are_those_of_one_reset_after_the_other():
    factory = sokoban.make("tiny", max_steps=6)
    environment, expected, seen = factory(), [], set()
    for index in range(200):
        seed = task_seed(0, "held_out", index)
        key = environment.reset(seed=seed, options={"split": "held_out"})[1]["state_key"]
        if key not in seen:
            seen.add(key)
            expected.append(seed)
    seed_of = lambda index: task_seed(0, "held_out", index)
    for episodes in (40, 7):
        tasks = choose_held_out(EnvironmentPool(checked(factory)), episodes, seed_of)
        assert seeds(tasks) == expected[:episodes]


def test_repeated_states_are_left_out(pool):
    assert seeds(choose_held_out(pool(5), 4, lambda index: index // 2)) == [0, 1, 2, 3]


def test_a_task_that_cannot_be_reset_is_left_out_and_counted(pool, caplog):
    assert seeds(choose_held_out(pool(100, (1, 3)), 4, lambda index: index)) == [0, 2, 4, 5]
    assert "2 of 6 held-out tasks were left out, because their environments failed: OSError: no game 1" in caplog.text


def test_an_environment_that_always_fails_is_asked_for_one_round(pool):
    with pytest.raises(ValueError, match="failed on all of the first 32 held-out tasks: OSError: no game 0"):
        choose_held_out(pool(9, range(10_000)), 512, lambda index: index)
    assert len(Numbers.resets) == 32


def test_one_initial_state_costs_few_resets(pool, caplog):
    tasks = choose_held_out(pool(1), 512, lambda index: index)
    assert len(set(seeds(tasks))) == 512 and len(Numbers.resets) <= 96
    assert "65 resets found only 1 different held-out tasks; 511 of the 512 evaluation tasks repeat their initial states" in caplog.text


def test_every_state_of_a_few_is_found(pool):
    """The last of 40 states that are drawn alike shows itself before the search is given up."""
    draws = np.random.default_rng(0).integers(0, 40, 2000)
    tasks = choose_held_out(pool(40), 50, lambda index: int(draws[index]) if index < 1000 else 10_000 + index)
    assert {seed % 40 for seed in seeds(tasks)[:40]} == set(range(40))


def test_counted_tasks_are_not_reset(pool):
    assert seeds(choose_held_out(pool(1, (), ("tasks",)), 5, lambda index: 99)) == [0, 1, 2, 3, 4]
    assert not Numbers.resets


def test_one_picture_of_each_size_of_both_splits(pool):
    pictures = first_pictures(pool(1), lambda index: index)
    assert sorted(p.shape[0] for p in pictures) == [4, 8]
    assert {split for _, split in Numbers.resets} == {"train", "held_out"} and len(Numbers.resets) == 128


def test_pictures_of_an_environment_that_fails_sometimes(pool, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(first_pictures(pool(1, range(5)), lambda index: index)) == 2
    assert "no game 0" in caplog.text


def test_no_picture_at_all(pool):
    with pytest.raises(ValueError, match="failed on all of the first 32 tasks: OSError: no game 0"):
        first_pictures(pool(1, range(1000)), lambda index: index)
