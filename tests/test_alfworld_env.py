"""The ALFWorld environment: the protocol, the stock engine's answers, and errors for bad data."""

import contextlib
import hashlib
import io
import json
import lzma
import pickle
import shutil
from pathlib import Path

import pytest

pytest.importorskip("textworld")
pytest.importorskip("alfworld")

from stepreward.envs import alfworld
from stepreward.envs.alfworld import engine, games, speed
from stepreward.envs.alfworld.generate import generate, write
from stepreward.envs.protocol import Environment, replay_prefix

REAL = Path(__file__).parents[2] / "shared" / "data" / "alfworld"
ALL = alfworld.settings("tiny", task_types=alfworld.TASK_TYPES)


@pytest.fixture(scope="module")
def environment():
    made = alfworld.make("tiny")()
    yield made
    made.close()


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Three games in the official layout (two train, one held out), and trials that are not playable games."""
    root = tmp_path_factory.mktemp("json_2.1.1")
    for seed in (0, 3):
        write(generate(ALL, seed), root)
    held_out = write(generate(ALL, 1, "held_out"), root)
    held_out.parent.parent.parent.rename(root / "valid_seen")
    (root / "train" / "pick_and_place_with_movable_recep-x" / "trial_1").mkdir(parents=True)
    (root / "train" / "pick_and_place_with_movable_recep-x" / "trial_1" / "traj_data.json").write_text("{}")
    unsolvable = write(generate(ALL, 9), root)
    unsolvable.write_text(unsolvable.read_text().replace('"solvable": true', '"solvable": false'))
    return root


def packed(folder, split, seeds, **changes):
    """Writes a packed file of generated games, and the file of its domain."""
    lines = []
    for seed in seeds:
        generated = generate(ALL, seed)
        sha1 = hashlib.sha1(generated.game.domain.encode()).hexdigest()
        (folder / f"domain_{sha1[:8]}.pddl").write_text(generated.game.domain)
        record = {
            "game": generated.game.name, "solvable": True, "task_type": generated.task_type, "domain_sha1": sha1,
            "grammar": generated.game.grammar, "pddl_problem": generated.game.problem,
            "gt_traj": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "go to desk 1"}], **changes,
        }  # fmt: skip
        lines.append(json.dumps(record))
    file = folder / f"{split}.jsonl.xz"
    file.write_bytes(lzma.compress("\n".join(lines).encode(), preset=0))
    return file


def test_protocol(environment):
    assert isinstance(environment, Environment)
    observation, info = environment.reset(seed=0)
    assert observation["text"].startswith("You are in the middle of a room.") and observation["turn"] == 0
    assert info["task"] in observation["text"] and not info["won"] and info["executed"] and info["score"] == 0.0
    assert list(info["admissible"]) == sorted(info["admissible"]) and "look" in info["admissible"]
    start = info["state_key"]
    observation, reward, terminated, truncated, info = environment.step(info["admissible"][0])
    assert (reward, terminated, truncated, info["executed"]) == (0.0, False, False, True)
    assert info["state_key"] != start and not observation["text"].startswith("You arrive") and observation["turn"] == 1
    assert environment.step(None)[0]["turn"] == 2  # a turn without effect counts, too


@pytest.mark.parametrize("action", [None, "", "fly", "go to moon 1", "move to", "put x in/on", "\n", "{r}", "take 1 from", "é"])
def test_any_action_is_legal(environment, action):
    _, before = environment.reset(seed=0)
    observation, reward, terminated, truncated, info = environment.step(action)
    assert observation == {"text": "Nothing happens.", "turn": 1} and not info["executed"] and not (terminated or truncated)
    assert info["state_key"] == before["state_key"] and info["admissible"] == before["admissible"] and reward == 0


def test_ends(environment):
    environment.reset(seed=0)
    for turn in range(20):
        *_, truncated, _ = environment.step("look")
        assert truncated == (turn == 19)
    with pytest.raises(RuntimeError, match="reset"):
        environment.step("look")


def test_looking_does_not_change_the_state(environment):
    _, before = environment.reset(seed=0)
    for action in ("look", "inventory", "help"):
        *_, info = environment.step(action)
        assert info["executed"] and info["state_key"] == before["state_key"]


def test_seeds_and_replay(environment):
    _, first = environment.reset(seed=4)
    actions = environment.expert()
    told = [environment.step(action) for action in actions[:-1]]
    observation, info = replay_prefix(environment, actions[:-1], seed=4)
    assert (observation, info) == (told[-1][0], told[-1][-1])
    assert environment.reset(seed=4)[1] == first != environment.reset(seed=4, options={"split": "held_out"})[1]


def test_snapshots(environment):
    environment.reset(seed=2)
    actions = environment.expert()
    for action in (*actions[:2], "nonsense"):
        environment.step(action)
    snapshot = pickle.loads(pickle.dumps(environment.snapshot()))
    expected = [environment.step(action) for action in actions[2:]]
    other = pickle.loads(pickle.dumps(alfworld.make("tiny")))()
    for one in (environment, other):
        one.restore(snapshot)
        assert [one.step(action) for action in actions[2:]] == expected
    assert expected[-1][2] and expected[-1][-1]["won"]
    other.close()
    other.close()
    assert environment.reset(seed=0)[1] == other.reset(seed=0)[1]  # a closed one starts anew
    other.close()


def test_a_closed_engine_gives_its_library_to_the_next_one_once():
    first = engine.Engine()
    library = first._stock.downward_lib
    first.close()
    first.close()
    second, third = engine.Engine(), engine.Engine()
    assert second._stock.downward_lib is library and third._stock.downward_lib is not library
    second.close()
    third.close()


def test_a_game_that_was_played_last_is_not_loaded_again(environment, monkeypatch):
    environment.reset(seed=6)
    engine, loaded = environment._engine, []
    load = engine._wrapped.load
    monkeypatch.setattr(engine._wrapped, "load", lambda content: (loaded.append(content), load(content)))
    environment.reset(seed=6)
    before = environment.snapshot()
    environment.step("look")
    environment.restore(before)
    environment.expert()
    assert loaded == []
    environment.reset(seed=7)
    assert len(loaded) == 1


@pytest.mark.parametrize("grammar, verb", [("old", "put "), ("new", "move ")])
def test_both_wordings_are_understood(grammar, verb):
    environment = alfworld.make("tiny", grammar=grammar, arrival=True, task_types=("pick_and_place_simple",))()
    environment.reset(seed=1)
    actions = environment.expert()
    assert actions[-1].startswith(verb)
    thing, place = actions[-1].removeprefix(verb).split(" in/on " if grammar == "old" else " to ")
    for wording in (f"put {thing} in/on {place}", f"move {thing} to {place}"):
        environment.reset(seed=1)
        for action in actions[:-1]:
            observation, *_, info = environment.step(action)
            if action.startswith("go to"):
                assert observation["text"].startswith("You arrive at loc" if grammar == "old" else "You arrive at " + action[6:])
        assert actions[-1] in info["admissible"]
        observation, reward, terminated, _, info = environment.step(wording)
        assert terminated and info["won"] and reward == 1.0
        assert observation["text"].startswith("You put" if grammar == "old" else "You move")
    environment.close()


def test_preset_forms():
    environment = alfworld.make("istar", max_receptacles=5, max_objects=6)()
    observation, _ = environment.reset(seed=1)
    assert observation["text"].startswith("-= Welcome to TextWorld, ALFRED! =-\n\n")
    for action in environment.expert():
        observation, reward, *_ = environment.step(action)
    assert reward == 10.0
    environment.close()


def stock(root, seeds_actions):
    """Returns the answers of the benchmark's own environment to the same actions."""
    from alfworld.agents.environment.alfred_tw_env import AlfredTWEnv

    config = {
        "env": {"goal_desc_human_anns_prob": 0.0, "task_types": [1, 2, 3, 4, 5, 6], "domain_randomization": False,
                "expert_type": "handcoded"},
        "dataset": {"data_path": str(root / "train"), "num_train_games": -1},
        "general": {"training_method": "dqn"}, "rl": {"training": {"max_nb_steps_per_episode": 50}},
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        benchmark = AlfredTWEnv(config, train_eval="train")
    told = {}
    benchmark.game_files.sort()
    env = benchmark.init_env(batch_size=1)
    for _ in benchmark.game_files:
        texts, infos = env.reset()
        name = Path(infos["extra.gamefile"][0]).parent.relative_to(root).as_posix()
        turns = [(texts[0], tuple(infos["admissible_commands"][0]))]
        for action in seeds_actions[name]:
            texts, scores, dones, infos = env.step([action])
            turns.append((texts[0], scores[0], dones[0], infos["won"][0], tuple(infos["admissible_commands"][0])))
        told[name] = turns
    env.close()
    return told


def test_the_same_as_the_stock_environment(official):
    speed.uninstall()  # the stock environment forks, and must run with the original functions
    environment = alfworld.make("istar", data=str(official), won_reward=1.0, expert="oracle")()
    told, actions = {}, {}
    for seed in range(environment.num_tasks("train")):
        observation, info = environment.reset(seed=seed)
        name = environment._game.name
        actions[name] = ["look", "dance", *environment.expert()]
        actions[name][3:3] = ["inventory", "examine " + actions[name][2].removeprefix("go to ")]
        told[name] = [(observation["text"], info["admissible"])]
        for action in actions[name]:
            observation, reward, done, _, info = environment.step(action)
            told[name].append((observation["text"], reward, done, info["won"], info["admissible"]))
        assert done
    environment.close()
    speed.uninstall()
    try:
        assert stock(official, actions) == told and len(told) == 2
    finally:
        speed.install()


def test_the_cached_functions_give_the_same_results():
    import textworld.envs.pddl.textgen as textgen
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from textworld.core import EnvInfos
    from textworld.envs.pddl import PddlEnv

    def play(seed):
        game = generate(ALL, seed).game
        env = AlfredDemangler(PddlEnv(EnvInfos(won=True, admissible_commands=True)))
        env.load({"pddl_domain": game.domain, "pddl_problem": game.problem, "grammar": game.grammar})
        state = env.reset()
        told = [(state.feedback, state.admissible_commands)]
        for turn in range(8):
            state, score, done = env.step(state.admissible_commands[(5 * turn + seed) % len(state.admissible_commands)])
            told.append((state.feedback, score, done, state.admissible_commands, state["won"]))
        return told

    speed.uninstall()
    original = textgen._parse_and_convert, textgen.ContextSensitiveGrammar.__dict__["derive"]
    try:
        slow = [play(seed) for seed in range(3)]
        with speed.installed():
            assert textgen._parse_and_convert is not original[0]
            speed.install()
            assert [play(seed) for seed in range(3)] == slow
        assert (textgen._parse_and_convert, textgen.ContextSensitiveGrammar.__dict__["derive"]) == original
    finally:
        speed.install()


def test_environments_of_one_process_do_not_affect_each_other(environment):
    other = alfworld.make("tiny")()
    environment.reset(seed=4)
    actions = environment.expert()
    alone = [environment.step(action) for action in actions]
    environment.reset(seed=4)
    other.reset(seed=5)
    mixed = []
    for action in actions:
        mixed.append(environment.step(action))
        other.step("look")
    assert mixed == alone
    other.close()


def test_official_layout(official):
    environment = alfworld.make("istar", data=official.parent if official.name == "json_2.1.1" else official)()
    assert environment.num_tasks("train") == 2 and environment.num_tasks("held_out") == 1
    names = []
    for seed in range(3):
        environment.reset(seed=seed)
        names.append(environment._game.name)
    assert names[0] == names[2] != names[1]
    environment.close()
    with pytest.raises(FileNotFoundError, match="valid_unseen"):
        alfworld.make("istar", data=official, held_out="valid_unseen")().num_tasks("held_out")


def test_games_that_the_benchmark_leaves_out_are_not_played(tmp_path):
    for seed in (0, 3):
        write(generate(ALL, seed), tmp_path)
    played = sorted((tmp_path / "train").glob("*/*"))
    for folder, name in ((played[0], "movable_recep-None"), (played[1], "KnifeSliced-None")):  # complete games apart from their names
        shutil.copytree(folder, tmp_path / "train" / f"pick_and_place_simple-{name}" / "trial_1")
    types = {json.loads((folder / "traj_data.json").read_text())["task_type"] for folder in played}
    assert len(games.Folder(tmp_path, "train", alfworld.TASK_TYPES, "error")) == 2 == len(types)
    for task_type in types:
        assert len(games.Folder(tmp_path, "train", (task_type,), "error")) == 1


def test_half_downloaded(official, tmp_path):
    file = write(generate(ALL, 0), tmp_path)
    other = write(generate(ALL, 3), tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="no game.tw-pddl .1 such trials in train.*missing='skip'"):
        alfworld.make("istar", data=tmp_path)().reset(seed=0)
    assert alfworld.make("istar", data=tmp_path, missing="skip")().num_tasks("train") == 1
    other.write_text(other.read_text()[:200])
    with pytest.raises(ValueError, match="damaged or incomplete"):
        games.Folder(tmp_path, "train", alfworld.TASK_TYPES, "skip")
    other.write_text('{"solvable": true}')
    with pytest.raises(ValueError, match="lacks pddl_domain"):
        games.Folder(tmp_path, "train", alfworld.TASK_TYPES, "skip")[0]


def test_wrong_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder.*alfworld-download"):
        alfworld.make("istar", data=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="neither train/<task>/<trial>/game.tw-pddl"):
        alfworld.make("istar", data=tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match="has no solvable"):
        alfworld.make("istar", data=tmp_path)().reset(seed=0)


def test_held_out_games_alone(tmp_path):
    packed(tmp_path, "valid_unseen", (0, 3))
    environment = alfworld.make("istar", data=tmp_path, held_out="valid_unseen")()
    assert environment.num_tasks("held_out") == 2
    environment.reset(seed=0, options={"split": "held_out"})
    with pytest.raises(FileNotFoundError, match="neither train/<task>/<trial>/game.tw-pddl"):
        environment.num_tasks("train")
    environment.close()


def test_packed(tmp_path):
    file = packed(tmp_path, "train", (0, 3, 4))
    environment = alfworld.make("istar", data=tmp_path, expert="recorded")()
    assert environment.num_tasks("train") == 3
    environment.reset(seed=0)
    assert environment.expert() == ["go to desk 1"]
    environment.step("inventory")
    assert environment.expert() is None  # no longer on the recorded path
    environment.close()
    content = file.read_bytes()
    half = content[: len(content) // 2]
    for damage, text in ((half, "damaged"), (b"not xz", "damaged"), (lzma.compress(b"{}"), "packed file")):
        file.write_bytes(damage)
        with pytest.raises(ValueError, match=text):
            games.Packed(file, alfworld.TASK_TYPES)
    packed(tmp_path, "train", (0,), domain_sha1="0" * 40)
    with pytest.raises(FileNotFoundError, match="domain_00000000.pddl is missing"):
        games.Packed(file, alfworld.TASK_TYPES)
    (tmp_path / "domain_00000000.pddl").write_text("(define)")
    with pytest.raises(ValueError, match="SHA-1"):
        games.Packed(file, alfworld.TASK_TYPES)


def test_a_game_that_cannot_be_loaded(tmp_path):
    packed(tmp_path, "train", (0,), pddl_problem="(define (problem x)")
    environment = alfworld.make("istar", data=tmp_path)()
    with pytest.raises(ValueError, match="cannot be loaded"):
        environment.reset(seed=0)
    environment.close()


def test_other_bad_input(environment):
    with pytest.raises(ValueError, match="only option is split"):
        environment.reset(seed=0, options={"level": 3})
    with pytest.raises(ValueError, match="held_out"):
        environment.reset(seed=0, options={"split": "test"})
    with pytest.raises(ValueError, match="at least 0"):
        environment.reset(seed=-1)
    with pytest.raises(ValueError, match="the number of generated games is unlimited"):
        environment.num_tasks("train")
    fresh = alfworld.make("tiny")()
    for call in (fresh.snapshot, fresh.distance, fresh.expert):
        with pytest.raises(RuntimeError, match="reset"):
            call()


@pytest.mark.skipif(not REAL.is_dir(), reason="the benchmark's games are not in ../shared/data/alfworld")
def test_real_games():
    environment = alfworld.make("spa", data=REAL, expert="oracle")()
    assert environment.num_tasks("held_out") == 140
    observation, info = environment.reset(seed=17, options={"split": "held_out"})
    assert observation["text"].startswith("You are in the middle of a room.")
    for action in environment.expert():
        *_, info = environment.step(action)
    assert info["won"]
    environment.close()
