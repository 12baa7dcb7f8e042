"""The presets of the built-in environments, for which docs/environments publishes numbers: their settings and limits."""

import dataclasses
import importlib

import pytest

SOKOBAN = {
    "height": 6, "width": 6, "boxes": 1, "max_steps": 15, "search_depth": 30, "search_states": 10_000, "min_moves": 0,
    "max_moves": None, "attempts": 10_000, "observation": "text", "invalid_reward": -0.1, "data": None,
}  # fmt: skip
FILTERED = SOKOBAN | {"min_moves": 4, "max_moves": 12}
WEBSHOP = {
    "data": None, "goals": "auto", "seed": 42, "held_out": 500, "train_indices": None, "held_out_indices": None, "max_steps": 10,
    "reward": "score", "observation": "text", "hits": 50, "page_size": 10, "show_attributes": False,
}  # fmt: skip
SOTOPIA = {"max_steps": 20, "style": "full", "scenarios": None, "invalid_reward": 0.0, "judge_noise": 0.0}
ALL_TASKS = (
    "pick_and_place_simple", "look_at_obj_in_light", "pick_clean_then_place_in_recep", "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep", "pick_two_obj_and_place",
)  # fmt: skip
ALFWORLD = {
    "data": None, "held_out": "valid_seen", "missing": "error", "task_types": ALL_TASKS, "max_steps": 50, "won_reward": 10.0,
    "grammar": "game", "arrival": True, "welcome": True, "expert": "explorer", "max_receptacles": None, "max_objects": 24,
}  # fmt: skip
VIRTUALHOME = {
    "max_steps": 40, "data": None, "graphs": None, "scenes": None, "goal": "graph", "split_by": "task", "split_seed": 0,
    "min_program": 1, "max_program": None, "titles": (), "gold_memory": False, "observation": "full", "show_room": True,
    "success_reward": 1.0, "progress_reward": 0.0, "admissible": "none", "short_expert": False,
}  # fmt: skip
TEXTCRAFT = {
    "max_steps": 20, "depths": (2, 3, 4), "max_plan": None, "max_recipes": None, "split_seed": 0, "distractors": 10, "observation": "full",
    "admissible": "none", "success_reward": 1.0, "turn_reward": False,
}  # fmt: skip
SCIENCEWORLD = {
    "max_steps": 30, "tasks": (), "held_out_tasks": (), "held_out": "test", "data": None, "simplifications": "easy", "reward": "score",
    "observation": "full", "admissible": "none", "turn_reward": False, "short_expert": False, "memory_mb": 1024,
}  # fmt: skip
TITLES = (
    "Browse internet", "Cook some food", "Drink", "Put groceries in Fridge", "Read book", "Wash dishes by hand",
    "Wash dishes with dishwasher", "Watch TV", "Work",
)  # fmt: skip
SEARCH_QA = {
    "data": None, "held_out_data": None, "corpus": None, "held_out": 500, "seed": 0, "questions": 4000, "people": 600, "hops": (1, 2, 3, 4),
    "style": "full", "observation": "documents", "hits": 3, "max_words": 0, "max_steps": 10, "answer_turns": 0, "repeats": True,
    "norm": "squad", "reward": "f1", "score": "f1", "win_f1": None, "wrong_reward": 0.0, "invalid_reward": 0.0, "unanswered_reward": 0.0,
    "tool_bonus": 0.0, "turn_reward": False,
}  # fmt: skip
SHORT = {"style": "short", "observation": "compact", "hits": 1}
PRESETS = {
    "search_qa": {
        "tiny": SEARCH_QA | SHORT | {"people": 2000, "questions": 12_000, "hops": (1, 2), "max_steps": 5},
        "micro": SEARCH_QA | SHORT | {"hops": (1,), "max_steps": 4, "people": 80, "questions": 200, "held_out": 40},
        "istar": SEARCH_QA | {"hops": (1, 2, 3), "max_steps": 4, "repeats": False, "reward": "em", "invalid_reward": -0.01},
        "spa": SEARCH_QA,
        "search_r1": SEARCH_QA | {"max_words": 375, "max_steps": 5, "answer_turns": 1, "reward": "em", "score": "em"},
        "igpo": SEARCH_QA | {"norm": "igpo", "unanswered_reward": -2.0},
        "arpo": SEARCH_QA | {"unanswered_reward": -1.0, "tool_bonus": 0.1},
    },
    "sokoban": {
        "tiny": FILTERED,
        "tiny_image": FILTERED | {"observation": "image"},
        "istar": SOKOBAN,
        "istar_image": SOKOBAN | {"observation": "image"},
        "ragen": SOKOBAN | {"max_steps": 10, "search_depth": 300},
        "ragen_large": SOKOBAN | {"height": 8, "width": 8, "boxes": 2, "max_steps": 10, "search_depth": 10},
        "large": SOKOBAN | {"height": 10, "width": 10, "boxes": 4, "max_steps": 120, "search_depth": 300},
    },
    "webshop": {
        "tiny": WEBSHOP | {"max_steps": 8, "observation": "compact", "hits": 20, "page_size": 5},
        "istar": WEBSHOP | {"goals": "synthetic", "reward": "success", "observation": "stripped"},
        "spa": WEBSHOP,
    },
    "sotopia": {
        "tiny": SOTOPIA | {"max_steps": 6, "style": "short", "scenarios": ("bike", "salary", "noise", "film")},
        "istar": SOTOPIA,
        "spa": SOTOPIA,
        "sotopia": {
            "data": None, "partner_url": None, "partner_model": "default", "judge_url": None, "judge_model": None,
            "key_variable": "OPENAI_API_KEY", "max_steps": 10, "partner_prompt": None, "subset": "all", "split_seed": 0,
            "seat": None, "temperature": 0.7, "timeout_s": 60.0, "retries": 3, "backoff_s": 0.5, "cache": None, "storage": None,
            "invalid_reward": 0.0,
        },
    },
    "alfworld": {
        "tiny": ALFWORLD | {"task_types": ALL_TASKS[:4], "max_steps": 20, "won_reward": 1.0, "grammar": "new", "arrival": False,
                            "welcome": False, "max_receptacles": 7, "max_objects": 10},
        "istar": ALFWORLD,
        "spa": ALFWORLD | {"max_steps": 40, "won_reward": 1.0, "grammar": "old", "arrival": False, "welcome": False},
    },
    "virtualhome": {
        "tiny": VIRTUALHOME | {"max_steps": 12, "max_program": 12, "titles": TITLES, "gold_memory": True, "observation": "short",
                               "admissible": "changes", "short_expert": True},
        "istar": VIRTUALHOME | {"success_reward": 10.0, "admissible": "changes", "short_expert": True},
        "spa": VIRTUALHOME | {"gold_memory": True, "show_room": False},
    },
    "textcraft": {
        "tiny": TEXTCRAFT | {"max_steps": 10, "depths": (1, 2), "max_plan": 5, "max_recipes": 4, "distractors": 2, "observation": "short",
                             "admissible": "recipes"},
        "istar": TEXTCRAFT | {"admissible": "recipes", "success_reward": 10.0},
        "spa": TEXTCRAFT,
    },
    "scienceworld": {
        "tiny": SCIENCEWORLD | {"max_steps": 15, "tasks": ("find-animal", "find-living-thing", "find-non-living-thing", "find-plant"),
                                "observation": "short", "short_expert": True},
        "istar": SCIENCEWORLD | {"reward": "success", "short_expert": True},
        "spa": SCIENCEWORLD,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_the_presets_are_those_of_the_docs(name):
    presets = importlib.import_module(f"stepreward.envs.{name}.presets").PRESETS
    assert list(presets) == list(PRESETS[name])
    for preset, expected in PRESETS[name].items():
        has = dataclasses.asdict(presets[preset])
        assert {setting: has[setting] for setting in expected} == expected, preset


@pytest.mark.parametrize(
    ("name", "preset", "least"),
    [
        ("sokoban", "istar", {"height": 4, "width": 4, "boxes": 1, "max_steps": 1, "search_depth": 3, "search_states": 2,
                              "min_moves": 0, "attempts": 1}),
        ("webshop", "spa", {"max_steps": 1, "hits": 1, "page_size": 1, "held_out": 1}),
        ("sotopia", "istar", {"max_steps": 1, "judge_noise": 0}),
        ("sotopia", "sotopia", {"max_steps": 1, "retries": 0, "backoff_s": 0, "temperature": 0, "split_seed": 0}),
        ("alfworld", "istar", {"max_steps": 1, "max_receptacles": 3, "max_objects": 2}),
        ("search_qa", "spa", {"max_steps": 1, "hits": 1, "max_words": 0, "held_out": 1, "seed": 0, "questions": 1, "people": 80,
                              "answer_turns": 0}),
        ("virtualhome", "istar", {"max_steps": 1, "split_seed": 0, "min_program": 1, "max_program": 1}),
        ("textcraft", "istar", {"max_steps": 1, "max_plan": 2, "max_recipes": 1, "split_seed": 0, "distractors": 0}),
        ("scienceworld", "istar", {"max_steps": 1, "memory_mb": 64}),
    ],
)  # fmt: skip
def test_the_least_value_of_a_setting_is_taken_and_one_less_refused(name, preset, least):
    settings = importlib.import_module(f"stepreward.envs.{name}.presets").settings
    for setting, value in least.items():
        assert getattr(settings(preset, **{setting: value}), setting) == value
        with pytest.raises(ValueError, match=setting):
            settings(preset, **{setting: value - 1})


def test_a_sokoban_room_has_a_cell_for_the_player_every_box_and_every_target():
    settings = importlib.import_module("stepreward.envs.sokoban").settings
    assert settings("istar", height=5, width=5, boxes=4).boxes == 4  # nine cells inside the wall
    with pytest.raises(ValueError, match="boxes=5"):
        settings("istar", height=5, width=5, boxes=5)
