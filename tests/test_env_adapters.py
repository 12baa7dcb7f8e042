"""Adapters to other packages' environments: defaults, what the environment itself provides, and seeding."""

import random
import sys
import types

import numpy as np
import pytest

from stepreward.envs import adapters
from stepreward.envs.adapters.randomness import OwnRandomness
from stepreward.envs.protocol import ADMISSIBLE, EXPERT, Environment, prompt_view, replay_prefix


class Coin:
    """A game of guessing a coin that the global generator tosses, for three turns."""

    def reset(self, *, seed=None, options=None):
        self.side, self.left, self.options = random.choice(["heads", "tails"]), 3, options
        return "A coin was tossed.", {"task": "Say heads or tails."}

    def step(self, action):
        self.left -= 1
        right = action == self.side
        text = "Right." if right else f"No. {random.random():.6f}"
        return text, float(right), right, self.left == 0, {"invalid": action == "edge"}

    def expert(self, rng=None):
        return [self.side]


class Told(Coin):
    """The same game, with a complete info."""

    def reset(self, *, seed=None, options=None):
        text, info = super().reset(seed=seed)
        return {"text": text, "image": np.ones((2, 2, 3), np.uint8)}, info

    def step(self, action):
        observation, reward, *ends, _ = super().step(action)
        info = {"correct": reward > 0, "score": 0.25, "executed": False, "admissible_commands": ["heads", "tails"], "where": 3}
        return {"text": observation, "image": np.zeros((2, 2, 3), np.uint8)}, reward, *ends, info


def play(environment, actions, seed=0, split="train"):
    turns = [environment.reset(seed=seed, options={"split": split})]
    for action in actions:
        turns.append(environment.step(action))
        if turns[-1][2] or turns[-1][3]:
            break
    return turns


# --- Any class ---


def test_missing_info_gets_fallbacks():
    environment = adapters.TextEnv(Coin, global_random=True)
    assert isinstance(environment, Environment) and EXPERT in environment.capabilities
    observation, info = environment.reset(seed=0)
    assert observation == {"text": "A coin was tossed."}
    told = dict(won=False, score=0.0, executed=True, state_key="A coin was tossed.", task="Say heads or tails.")
    assert info == told and prompt_view(observation, info)["task"] == "Say heads or tails."
    observation, reward, terminated, truncated, info = environment.step("edge")
    assert not info["executed"] and not info["won"] and reward == 0 and not (terminated or truncated)
    assert environment.step(None)[0] == observation  # no action, no change
    (answer,) = environment.expert()
    observation, reward, terminated, truncated, info = environment.step(answer)
    assert observation == {"text": "Right."} and terminated and info["won"] and info["score"] == 1.0 and reward == 1.0
    with pytest.raises(RuntimeError, match="call reset"):
        environment.step("heads")


def test_the_environments_own_info_takes_precedence():
    environment = adapters.TextEnv(Told, global_random=True, image=True, state_key="where", win_reward=5.0)
    with pytest.raises(ValueError, match="state_key='where'.*\\['task'\\]"):
        environment.reset(seed=0)
    environment = adapters.TextEnv(Told, global_random=True, image=True, win_reward=5.0)
    environment.reset(seed=0)
    observation, *_, info = environment.step(environment.expert()[0])
    told = dict(won=True, score=0.25, executed=False, state_key="Right.", admissible=("heads", "tails"))
    assert info == told | {"task": "Say heads or tails."}
    assert observation["image"].shape == (2, 2, 3)


def test_seeds_decide_and_splits_differ():
    one, other = (adapters.TextEnv(Coin, global_random=True) for _ in range(2))
    actions = ["edge", "edge", "edge"]
    first = play(one, actions, seed=4)
    random.seed(99)
    before = random.getstate()
    other.reset(seed=5)
    assert play(other, actions, seed=4) == first and random.getstate() == before  # the process's own generator is unchanged
    assert play(one, actions, seed=4, split="held_out") != first and play(one, actions, seed=6) != first
    assert replay_prefix(one, actions[:2], seed=4)[0] == first[2][0]
    assert len(first) == 4 and first[3][3]


def test_steps_are_limited_and_words_mapped():
    calls = []

    class Lamp:
        def reset(self, *, seed=None, options=None):
            return "off", {}

        def step(self, action):
            calls.append(action)
            return "on", 1.0, True, False, {}

    environment = adapters.TextEnv(Lamp, max_steps=2, actions={"press": 7}, invalid_reward=-0.5)
    observation, info = environment.reset(seed=0)
    assert info["admissible"] == ("press",) and ADMISSIBLE in environment.capabilities
    assert environment.step("shout")[1:4] == (-0.5, False, False) and environment.step("press")[1:4] == (1.0, True, False)
    environment.reset(seed=0)
    environment.step("shout")
    assert environment.step(None)[1:4] == (-0.5, False, True) and calls == [7]


def test_an_action_takes_the_form_that_is_asked_for():
    environment = adapters.TextEnv(Coin, template="[{}]", global_random=True)
    assert [environment._written(a) for a in ("5", "[5]", "I say [5].")] == ["[5]", "[5]", "I say [5]."]


@pytest.mark.parametrize(
    "changes, words",
    [({"wun": ()}, "setting wun"), ({"template": "[]"}, "template"), ({"actions": {}}, "actions"), ({"max_steps": -1}, "max_")],
)
def test_wrong_settings_are_errors(changes, words):
    with pytest.raises(ValueError, match=words):
        adapters.TextEnv(Coin, **changes)


def test_an_observation_that_is_not_text_is_an_error():
    class Number(Coin):
        def reset(self, *, seed=None, options=None):
            return 3, {}

    with pytest.raises(ValueError, match="int, not text.*render"):
        adapters.TextEnv(Number).reset(seed=0)


class Old:
    """An environment with the signatures of gym before 0.26."""

    def __init__(self):
        self.given = []

    def seed(self, seed):
        self.given.append(seed)

    def reset(self):
        return f"door {self.given[-1]}"

    def step(self, action):
        return "open", 1.0, True, {"TimeLimit.truncated": action == "wait"}


def test_the_old_forms_of_gym_are_adapted():
    environment = adapters.TextEnv(Old)
    first = environment.reset(seed=1)[0]["text"]
    assert first == environment.reset(seed=1)[0]["text"] != environment.reset(seed=2)[0]["text"]
    assert environment.step("knock")[1:4] == (1.0, True, False)
    environment.reset(seed=1)
    assert environment.step("wait")[2:4] == (False, True)


def test_an_info_of_none_is_empty():
    class Silent(Coin):
        def reset(self, *, seed=None, options=None):
            return "a coin", None

        def step(self, action):
            return "heads", 1.0, True, False, None

    environment = adapters.TextEnv(Silent)
    assert environment.reset(seed=0)[1]["executed"] and environment.step("heads")[4]["won"]


def test_a_reset_without_a_seed_is_an_error():
    class Unseeded:
        def reset(self):
            return "a coin", {}

    with pytest.raises(ValueError, match="reset of Unseeded takes no seed.*options.global_random=True"):
        adapters.TextEnv(Unseeded).reset(seed=0)
    assert adapters.TextEnv(Unseeded, global_random=True).reset(seed=0)[0]["text"] == "a coin"


@pytest.mark.parametrize(
    "found, words",
    [
        (("heads", None, True, False, {}), "step returned the reward None, not a number"),
        (("heads", 1.0, True), "step returned a tuple of 3, not .observation, reward"),
        ("heads", "step returned a str, not .observation, reward"),
        (("heads", 1.0, True, False, "won"), "the info of step is a str, not a mapping"),
    ],
)
def test_an_illegal_result_of_step_is_an_error(found, words):
    class Wrong(Coin):
        def step(self, action):
            return found

    environment = adapters.TextEnv(Wrong)
    environment.reset(seed=0)
    with pytest.raises(ValueError, match=words):
        environment.step("heads")


def test_numbered_actions_without_words_are_an_error():
    gymnasium = pytest.importorskip("gymnasium")
    environment = adapters.make("FrozenLake-v1", kwargs={"render_mode": "ansi"})()
    environment.reset(seed=0)
    with pytest.raises(ValueError, match=r"takes Discrete\(4\), not words: set environment.options.actions="):
        environment.step("left")
    assert gymnasium


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"win_rewrad": 2.0}, "unknown setting win_rewrad; the settings are .*; did you mean 'win_reward'"),
        ({"win_reward": "high"}, "setting win_reward='high': give a value of type float"),
        ({"render": 1}, "setting render=1: give a value of type bool"),
        ({"won": 3}, "won=3: give keys of info"),
    ],
)
def test_settings_of_another_type_are_errors(changes, words):
    with pytest.raises(ValueError, match=words):
        adapters.TextEnv(Coin, **changes)


def test_own_randomness_is_numpy_s_too():
    own = OwnRandomness()
    own.seed(3)
    with own.active():
        first = np.random.rand(2), random.random()
    own.seed(3)
    np.random.rand()
    with own.active():
        np.testing.assert_array_equal(np.random.rand(2), first[0])
        assert random.random() == first[1]


# --- By name ---


def test_a_dotted_factory(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_games", types.SimpleNamespace(Coin=Coin))
    environment = adapters.make("my_games:Coin", max_steps=2, global_random=True)()
    assert [turn[3] for turn in play(environment, ["edge"] * 3)[1:]] == [False, True]
    with pytest.raises(ValueError, match="this factory cannot be imported"):
        adapters.make("my_games:Dice")
    with pytest.raises(ValueError, match="this factory cannot be imported"):
        adapters.make("no_such_module:Dice")


def test_frozen_lake_in_text():
    pytest.importorskip("gymnasium")
    moves = {"left": 0, "down": 1, "right": 2, "up": 3}
    options = {"actions": moves, "kwargs": {"render_mode": "ansi", "is_slippery": False}}
    environment = adapters.make("FrozenLake-v1", max_steps=20, **options)()
    observation, info = environment.reset(seed=0)
    assert observation["text"].split() == ["[S]FFF", "FHFH", "FFFH", "HFFG"] and info["admissible"] == tuple(moves)
    turns = play(environment, ["down", "down", "right", "right", "down", "right"])
    assert turns[-1][1:4] == (1.0, True, False) and turns[-1][4]["won"] and turns[-1][4]["score"] == 1.0
    assert turns[2][0]["text"].split()[-3:] == ["FHFH", "[F]FFH", "HFFG"]
    lost = play(environment, ["right", "down"])
    assert lost[-1][2] and not lost[-1][4]["won"]


def test_a_text_environment_of_gymnasium():
    gymnasium = pytest.importorskip("gymnasium")

    class Guess(gymnasium.Env):
        observation_space = gymnasium.spaces.Text(100)
        action_space = gymnasium.spaces.Text(10)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.number = int(self.np_random.integers(100))
            return "guess", {}

        def step(self, action):
            return f"it is {self.number}", float(action == str(self.number)), True, False, {}

    gymnasium.register("StepRewardGuess-v0", entry_point=Guess, disable_env_checker=True)
    environment = adapters.make("StepRewardGuess-v0")()
    seen = [play(environment, ["no"], seed=s, split=split)[-1][0]["text"] for s in (0, 1, 0) for split in ("train", "held_out")]
    assert seen[:2] == seen[4:] and len(set(seen)) == 4
    assert play(environment, [seen[0].split()[-1]], seed=0)[-1][4]["won"]
    with pytest.raises(ValueError, match="NoSuchGame"):
        adapters.make("NoSuchGame-v0")()


def test_gem():
    pytest.importorskip("gem")
    environment = adapters.make("gem:game:GuessTheNumber-v0-easy", template="\\boxed{{}}")()
    observation, info = environment.reset(seed=0)
    assert info["task"] == observation["text"] and "between 1 and 10" in info["task"]
    number = next(n for n in range(1, 11) if play(environment, [str(n)])[-1][4]["won"])
    assert number == next(n for n in range(1, 11) if play(environment, [str(n)])[-1][4]["won"])
    wrong = play(environment, [str(number % 10 + 1)])[-1]
    assert ("higher" in wrong[0]["text"]) == (number % 10 + 1 < number) and not wrong[4]["won"]


# --- TextArena ---


@pytest.fixture(scope="module")
def arena():
    pytest.importorskip("textarena")
    from stepreward.envs.adapters import textarena

    return textarena


def test_a_game_of_one(arena):
    environment = arena.make("GuessTheNumber-v0", max_steps=8)()
    observation, info = environment.reset(seed=1)
    assert observation["text"] == info["task"] and "between 1 and 20" in info["task"]
    low, high = 1, 20
    while low <= high:
        observation, reward, terminated, truncated, info = environment.step(str((low + high) // 2))
        if terminated:
            break
        low, high = (low, (low + high) // 2 - 1) if "lower" in observation["text"] else ((low + high) // 2 + 1, high)
    assert info["won"] and reward == info["score"] == 1.0
    environment.reset(seed=1)
    *_, info = environment.step("[99]")
    assert not info["executed"]


def test_a_game_follows_its_seed(arena):
    made = arena.make("GuessTheNumber-v0")()

    def answer(seed):
        made.reset(seed=seed)
        return made.step("10")[0]["text"]

    told = [answer(seed) for seed in range(12)]
    assert told == [answer(seed) for seed in range(12)] and len(set(told)) >= 2  # higher, lower


def test_hanoi_shows_its_board(arena):
    environment = arena.make("TowerOfHanoi-v0")()
    observation, info = environment.reset(seed=0)
    assert "A: [3, 2, 1]" in observation["text"] and "A: [3, 2, 1]" not in info["task"]
    moves = ["A C", "A B", "C B", "A C", "B A", "B C", "A C"]
    turns = play(environment, moves)
    assert turns[-1][2] and turns[-1][4]["won"] and all(turn[4]["executed"] for turn in turns[1:])


def test_a_game_of_two_against_random_moves(arena):
    environment = arena.make("TicTacToe-v0", players=2, seat=1)()
    observation, info = environment.reset(seed=2)
    assert "Player 1" in info["task"] and "Player 0" in observation["text"]  # the opponent moved first

    def whole(seed):
        random.seed(seed)
        return play(environment, [str(cell) for cell in range(9) for _ in range(2)], seed=2)

    first = whole(0)
    assert first == whole(1) and (first[-1][2] or first[-1][3])
    scripted = arena.make("TicTacToe-v0", players=2, opponent=first_free)()
    lost = [turn for turn in play(scripted, ["8", "7", "5"]) if len(turn) == 5][-1]
    assert lost[1] == -1.0 and not lost[4]["won"]


def first_free(heard, draws):
    return arena_moves(heard)[0]


def arena_moves(heard):
    return [line for line in heard.splitlines() if "Available" in line][-1].split("'")[1::2]


def test_mistakes_are_errors(arena):
    with pytest.raises(ValueError, match="NoSuchGame"):
        arena.make("NoSuchGame-v0")()
    with pytest.raises(ValueError, match="seat=2"):
        arena.make("TicTacToe-v0", players=2, seat=2)()
    with pytest.raises(ValueError, match="this function cannot be imported"):
        arena.make("TicTacToe-v0", players=2, opponent="nowhere:none")


# --- Prompts ---


@pytest.mark.parametrize("name", ["compact", "istar", "spa"])
def test_prompts_show_task_window_and_observation(name):
    prompt = adapters.prompts(name)
    view = {"text": "You see a door.", "task": "Leave the house.", "admissible": ("open door", "wait")}
    earlier = {"text": "You see a key.", "task": "Leave the house."}
    assert prompt.parse(prompt.answer("open door")) == "open door" and prompt.parse(None) is None
    first, shown = prompt.first(view), prompt.window(view, [(earlier, "take key")])
    for text in (first, shown):
        assert text.count("Leave the house.") == 1 and text.count("You see a door.") >= 1
    assert "Leave the house." not in prompt.later(view) and "You see a door." in prompt.later(view)
    assert shown.index("Leave") < shown.index("You see a key.") < shown.index("take key") < shown.rindex("You see a door.")
    if name != "compact":
        assert "open door, wait" in first
    assert prompt.first({"text": "Leave the house.", "task": "Leave the house."}).count("Leave") == 1


def test_an_unknown_prompt_is_an_error():
    with pytest.raises(ValueError, match="compact, istar, spa"):
        adapters.prompts("spaa")


# --- Toy text with a table of transitions ---

ARROWS = {"left": 0, "down": 1, "right": 2, "up": 3}
LAKES = "stepreward.envs.adapters.tabular:FrozenLakes"


def lake(preset=LAKES, **kwargs):
    pytest.importorskip("gymnasium")
    return adapters.make(preset, max_steps=30, actions=ARROWS, render=True, kwargs=kwargs)()


@pytest.mark.parametrize(
    "preset, kwargs, way",
    [
        (LAKES, {"size": 5}, ()),
        ("FrozenLake-v1", {"render_mode": "ansi", "is_slippery": False}, ()),  # its text shows the last action too
        ("CliffWalking-v1", {"render_mode": "ansi"}, (0, *[1] * 11, 2)),  # up, right, down; a random walk does not get there
    ],
)
def test_the_graph_of_a_table_says_what_steps_do(preset, kwargs, way):
    environment, rng, seen = lake(preset, **kwargs), np.random.default_rng(0), set()
    for seed in range(8):
        _, info = environment.reset(seed=seed)
        planned = list(way) if seed == 0 else []
        graph, state = environment.transitions(), 0
        assert graph.max_steps == 30 and graph.keys[0] == info["state_key"] and len(graph.keys) > 10
        over = False
        while not over:
            assert environment.transitions().keys[0] == graph.keys[state]  # looking at the graph changes nothing
            action = planned.pop(0) if planned else int(rng.integers(4))
            observation, reward, terminated, truncated, info = environment.step(graph.actions[action])
            assert (reward, terminated, info["won"]) == (graph.reward[state, action], graph.done[state, action], graph.won[state, action])
            over = terminated or truncated
            if not over:
                state = graph.next_state[state, action]
                assert info["state_key"] == graph.keys[state] and prompt_view(observation, info) == dict(graph.views[state])
        seen.add(terminated)
    assert True in seen


def test_what_is_left_to_chance_or_shows_no_text_has_no_graph():
    assert "transitions" not in lake(slippery=True).capabilities
    assert "transitions" not in lake("FrozenLake-v1", render_mode="ansi", is_slippery=True).capabilities
    by_history = adapters.make(LAKES, actions=ARROWS, render=True, state_key="history")()
    assert "transitions" not in by_history.capabilities
    assert "transitions" not in adapters.TextEnv(Coin, global_random=True).capabilities


def test_states_that_look_alike_are_refused():
    class Fog(adapters.tabular.FrozenLakes):
        def render(self):
            return "fog"

    pytest.importorskip("gymnasium")
    environment = adapters.TextEnv(Fog, actions=ARROWS, render=True)
    environment.reset(seed=0)
    with pytest.raises(ValueError, match="two states have the same text"):
        environment.transitions()


def test_lakes_differ_by_seed_and_their_expert_takes_a_shortest_way():
    environment, maps = lake(size=5, maps=3), {}
    for split in ("train", "held_out"):
        for seed in range(12):
            text, info = environment.reset(seed=seed, options={"split": split})
            maps.setdefault(split, set()).add(text["text"])
            distance, graph = environment.distance(), environment.transitions()
            moves = environment.expert(np.random.default_rng(seed))
            assert len(moves) == distance >= 8
            for move in moves:
                assert environment.distance() == distance
                _, _, terminated, _, info = environment.step(move)
                distance -= 1
            assert terminated and info["won"] and environment.distance() == 0 and graph.won.any()
    assert len(maps["train"]) == len(maps["held_out"]) == 3 and not maps["train"] & maps["held_out"]
    with pytest.raises(ValueError, match="give at least 2 cells and 1 map"):
        lake(size=1)
