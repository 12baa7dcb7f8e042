"""The WebShop environment: tasks, rewards, snapshots, replay, the expert and the distance, on both catalogues."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
from webshop_data import REAL, write

from stepreward.envs.protocol import Environment, replay_prefix
from stepreward.envs.webshop import make, settings


def _random_actions(environment, seed, turns):
    """Plays random clicks, searches for the task and invalid actions; returns the actions and their results."""
    draw = np.random.default_rng(seed)
    _, info = environment.reset(seed=seed)
    actions, seen = [], []
    for _ in range(turns):
        choices = [*info["admissible"], "click[what is not there]", None]
        action = choices[int(draw.integers(len(choices)))]
        if action == "search[<your query>]":
            action = f"search[{info['task']}]"
        actions.append(action)
        seen.append(environment.step(action))
        info = seen[-1][-1]
        if seen[-1][2] or seen[-1][3]:
            break
    return actions, seen


@pytest.mark.parametrize("preset", ["tiny", "istar", "spa"])
def test_the_protocol(preset):
    factory = pickle.loads(pickle.dumps(make(preset)))
    environment = factory()
    assert isinstance(environment, Environment)
    observation, info = environment.reset(seed=3)
    assert set(info) == {"won", "score", "executed", "state_key", "admissible", "task", "noun_score"}
    assert (info["won"], info["score"], info["executed"]) == (False, 0.0, True)
    assert info["noun_score"] in ("spacy", "tokens")
    json.dumps(observation)
    for action in (None, "", "jump", "search[]", "click[nothing]", "\x00", "click[" * 100):
        again, reward, terminated, truncated, after = environment.step(action)
        assert (again, reward, terminated, truncated) == (observation, 0.0, False, False)
        assert not after["executed"] and after["state_key"] == info["state_key"]
    environment.close()


def test_seeds_select_tasks_of_a_split():
    environment = make("tiny")()
    held_out, train = environment.num_tasks("held_out"), environment.num_tasks("train")
    assert (held_out, train) == (500, 2416)

    def task(seed, split):
        return environment.reset(seed=seed, options={"split": split})[1]["task"]

    assert task(0, "held_out") == environment.reset(options={"goal": 0})[1]["task"] == task(500, "held_out")
    assert task(0, "train") == environment.reset(options={"goal": 500})[1]["task"] == task(2416, "train")
    assert task(2, "train") != task(3, "train")
    for options, named in (({"level": 1}, "level"), ({"split": "test"}, "test"), ({"goal": 9999}, "goal=9999")):
        with pytest.raises(ValueError, match=named):
            environment.reset(seed=0, options=options)
    with pytest.raises(ValueError, match="seed=-1"):
        environment.reset(seed=-1)
    with pytest.raises(ValueError, match="the splits are train, held_out"):
        environment.num_tasks("test")


def test_settings_and_their_errors(tmp_path):
    assert settings("istar").reward == "success" and settings("spa").max_steps == 10
    assert make("tiny", max_steps=3)().settings.max_steps == 3
    for arguments, named in (
        ({"preset": "big"}, "presets are tiny, istar, spa"), ({"depth": 3}, "the settings are data, goals"),
        ({"reward": "money"}, "reward='money'"), ({"page_size": 0}, "page_size=0"), ({"train_indices": "a"}, "both or none"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=named):
            make(**arguments)
    with pytest.raises(FileNotFoundError, match="no WebShop data"):
        make(data=str(tmp_path / "none"))()


def test_rewards_of_the_presets(tmp_path):
    folder = write(tmp_path)
    for preset, bad, good in (("istar", 0.0, 10.0), ("spa", 2 / 4, 1.0)):
        environment = make(preset, data=folder, held_out=1)()
        environment.reset(options={"goal": 0})
        best = environment.expert()
        for actions, score, reward in ((best[:2] + best[-1:], 2 / 4, bad), (best, 1.0, good)):
            environment.reset(options={"goal": 0})
            for action in actions:
                _, got, terminated, truncated, info = environment.step(action)
            assert (got, terminated, truncated, info["score"], info["won"]) == (reward, True, False, score, score == 1)
            with pytest.raises(RuntimeError, match="over"):
                environment.step("click[buy now]")


def test_an_episode_without_a_purchase_is_truncated():
    environment = make("istar", max_steps=2)()
    environment.reset(seed=0)
    assert environment.step("search[lamp]")[3] is False
    _, reward, terminated, truncated, info = environment.step(None)
    assert (reward, terminated, truncated, info["score"]) == (0.0, False, True, 0.0)


def test_snapshots_continue_anywhere():
    first, second = make("tiny")(), make("tiny")()
    for seed in range(8):
        actions, _ = _random_actions(first, seed, 3)
        if first.snapshot().over:
            continue
        snapshot = pickle.loads(pickle.dumps(first.snapshot()))
        further = [f"search[{seed} lamp]", "click[next >]", "click[< prev]"]
        ends = [first.step(action) for action in further]
        second.restore(snapshot)
        assert [second.step(action) for action in further] == ends
        assert second.snapshot() == first.snapshot()


def test_replay_leads_to_the_same_state():
    for preset in ("tiny", "spa"):
        environment = make(preset)()
        for seed in range(10):
            actions, seen = _random_actions(environment, seed, 10)
            observation, info = replay_prefix(environment, actions, seed=seed)
            assert observation == seen[-1][0] and info == seen[-1][-1]


def test_equal_states_have_equal_keys():
    environment = make("spa")()
    keys = []
    for actions in (["search[lamp]"], ["search[rug]", "search[Lamp]"], ["search[lamp]", "click[next >]"]):
        environment.reset(seed=0)
        for action in actions:
            info = environment.step(action)[-1]
        keys.append(info["state_key"])
    assert keys[0] == keys[1] != keys[2]
    long = [environment.step(f"search[{'lamp ' * 200}{end}]")[-1]["state_key"] for end in ("a", "b", "a", "\ud800")]
    assert long[0] == long[2] != long[1] and max(map(len, long)) < 100


@pytest.mark.parametrize("preset", ["tiny", "istar"])
def test_the_expert_wins_and_the_distance_counts_down(preset):
    environment = make(preset)()
    for seed in range(60):
        environment.reset(seed=seed)
        plan = environment.expert(np.random.default_rng(seed))
        assert len(plan) <= environment.settings.max_steps
        for left in range(len(plan), 0, -1):
            assert environment.distance() == left
            info = environment.step(plan[-left])[-1]
            assert info["executed"]
        assert info["won"] and environment.distance() == 0 and environment.expert() is None


def test_the_distance_includes_the_way_back(tmp_path):
    environment = make("spa", data=write(tmp_path), held_out=1, max_steps=50)()
    environment.reset(options={"goal": 0})
    environment.step("search[clay]")
    at_results = environment.distance()
    assert at_results == 4  # the mug, two options, the purchase
    environment.step("click[b00000000c]")
    assert environment.distance() == at_results + 1  # the wrong item
    environment.step("click[reviews]")
    assert environment.distance() == at_results + 2
    for wrong in ("click[< prev]", "click[< prev]", "click[b00000000a]"):
        environment.step(wrong)
    value = environment.expert()[0]
    environment.step(value)
    assert environment.distance() == 2
    other = {"click[red]": "click[sky | blue]", "click[sky | blue]": "click[red]"}[value]
    environment.step(other)
    assert environment.distance() == 3  # the wrong option must be changed
    environment.step("click[description]")
    assert environment.distance() == 4
    environment.step("search[plain cup]")
    assert environment.distance() == at_results + 2  # back and a new search, because no cup fits
    environment.step("click[b000000100]")
    assert environment.distance() == at_results + 2
    environment.step("click[buy now]")
    assert environment.distance() == math.inf and environment.expert() is None


def test_distances_after_random_play_are_the_lengths_of_winning_plans():
    environment = make("tiny", max_steps=60)()
    for seed in range(25):
        _random_actions(environment, seed, 6)
        if environment.snapshot().over:
            continue
        plan = environment.expert()
        assert len(plan) == environment.distance()
        for action in plan:
            info = environment.step(action)[-1]
        assert info["won"]


def test_episodes_do_not_depend_on_the_hash_seed(under_hash_seeds):
    program = (
        "import sys\nfrom stepreward.envs.webshop import make\ne = make('spa')()\nassert not {'jax', 'torch'} & set(sys.modules)\n"
        "assert not [name for name in sys.modules if name.startswith('jax')]  # nor a part of it that is left\n"
        "for seed in range(5):\n  print(e.reset(seed=seed)); plan = e.expert(); print(plan)\n  for a in plan: print(e.step(a))"
    )
    outputs = under_hash_seeds(program)
    assert outputs[0] == outputs[1] and "10" in outputs[0]


@pytest.mark.skipif(not REAL.is_dir(), reason="the benchmark's data is not here")
def test_the_expert_in_the_real_shop():
    environment = make("istar", data=str(REAL))()
    won = 0
    for seed in range(40):
        environment.reset(seed=seed, options={"split": "held_out"})
        for action in environment.expert() or ():
            _, reward, terminated, truncated, info = environment.step(action)
            assert info["executed"]
            if terminated or truncated:
                break
        won += environment.snapshot().score == 1
    assert won >= 36  # the others have options whose colour the reward cannot match
