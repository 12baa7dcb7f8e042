"""Each mistake in a custom environment module is a one-line error, before anything is written."""

import sys
import types

import pytest

from stepreward.training import setup


def module(**functions):
    found = types.ModuleType("my_game")
    vars(found).update(functions)
    return found


def make(preset, *, max_steps=None, width=3):
    return dict


@pytest.mark.parametrize(
    "functions, options, words",
    [
        ({"prompts": str}, {}, r"environment.name='my_game': the module has no function make\(preset"),
        ({"make": make}, {}, r"environment.name='my_game': the module has no function prompts\(name\)"),
        (
            {"make": make, "prompts": str},
            {"widht": 4},
            r"my_game.make does not take environment.options.widht .did you mean 'width'..; it takes max_steps, width",
        ),
        ({"make": lambda preset: dict, "prompts": str}, {}, "my_game.make does not take the argument max_steps .rollout.max_steps."),
        (
            {"make": lambda preset, **settings: 3, "prompts": str},
            {},
            "environment.name='my_game': make returned an object of type int; it must return a function without arguments",
        ),
    ],
)
def test_a_module_that_lacks_something_is_named(micro_config, monkeypatch, functions, options, words):
    monkeypatch.setitem(sys.modules, "my_game", module(**functions))
    with pytest.raises(ValueError, match=words):
        setup.environment_factory(micro_config({"environment.name": "my_game", "environment.options": options}))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"environment.pool": "procces"}, "environment.pool='procces' is not one of auto, inline, thread, process, ray"),
        ({"environment.reset_timeout_s": 0.0}, "environment.reset_timeout_s=0.0 must be a positive, finite number of seconds"),
    ],
)
def test_a_wrong_pool_is_named(micro_config, changes, words):
    with pytest.raises(ValueError, match=words):
        setup.check(micro_config(changes))
