"""Environments of OpenEnv through their adapter: in this process, and served on this machine."""

import threading

import pytest

openenv = pytest.importorskip("openenv")

import uvicorn
from openenv.core.env_server import Environment
from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.types import Action, Observation, State

from stepreward.envs.adapters.openenv import make
from stepreward.rollout.checking import breaches


class Say(Action):
    message: str


class Heard(Observation):
    echoed: str


class Echo(Environment):
    """Echoes each message; the episode is over at the word that the seed selects."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        super().__init__()
        self._word = ""

    def reset(self, seed=None, episode_id=None, **_) -> Heard:
        self._word = ("red", "green", "blue")[(seed or 0) % 3]
        return Heard(echoed=f"say {self._word}", done=False, reward=0.0)

    def step(self, action: Say, timeout_s=None, **_) -> Heard:
        over = action.message == self._word
        return Heard(echoed=action.message, done=over, reward=float(over))

    @property
    def state(self) -> State:
        return State()


HERE = f"{__name__}:Echo"


@pytest.fixture(scope="module")
def address():
    """The address of a server with the environment, in a thread of this process."""
    server = uvicorn.Server(
        uvicorn.Config(create_fastapi_app(Echo, Say, Heard, max_concurrent_envs=16), host="127.0.0.1", port=0, log_level="error")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(params=["in this process", "served"])
def preset(request):
    return HERE if request.param == "in this process" else request.getfixturevalue("address")


def test_an_episode(preset):
    environment = make(preset, max_steps=4)()
    observation, info = environment.reset(seed=3)
    word = observation["text"].removeprefix("say ")
    assert word in ("red", "green", "blue") and not info["won"]
    observation, reward, terminated, truncated, info = environment.step("hello")
    assert (observation["text"], reward, terminated, truncated, info["won"]) == ("hello", 0.0, False, False, False)
    observation, reward, terminated, _, info = environment.step(word)
    assert (observation["text"], reward, terminated, info["won"], info["score"]) == (word, 1.0, True, True, 1.0)
    assert {environment.reset(seed=seed)[0]["text"] for seed in range(20)} == {"say red", "say green", "say blue"}
    environment.close()


def test_it_keeps_to_the_protocol(preset):
    assert breaches(make(preset, max_steps=4, replay=True), seeds=(0, 1), steps=5, actions=("red", "hello")) == []


def test_an_action_that_does_not_fit_is_a_step_without_effect(preset):
    environment = make(preset, field="nothing_like_that", max_steps=4)()
    before, _ = environment.reset(seed=0)
    observation, reward, terminated, _, info = environment.step("red")
    assert observation == before and reward == 0.0 and not terminated and not info["executed"]
    environment.close()


def test_fields_are_chosen():
    named = make(HERE, actions={"stop": {"message": "red"}}, shown=("echoed",))()
    named.reset(seed=0)
    assert named.step("stop")[0]["text"] == "red"
    wrong = make(HERE, shown="echo")()
    with pytest.raises(ValueError, match="shown='echo': an observation has the fields echoed"):
        wrong.reset(seed=0)


def test_mistakes_are_errors():
    for preset, words in (
        ("echo", "give the address"),
        ("no_such_module:Echo", "cannot be imported"),
        (f"{__name__}:Gone", "cannot be imported"),
        ("http://127.0.0.1:9", "does not answer"),
    ):
        with pytest.raises(ValueError, match=words):
            make(preset)()
