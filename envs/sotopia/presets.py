"""Named settings of the embedded world and of the package."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from stepreward.envs.choosing import settings_of
from stepreward.envs.sotopia.scenarios import SCENARIOS

STYLES = ("short", "full")
SUBSETS = ("all", "hard")
PROMPTS = ("compact", "istar", "spa")


@dataclass(frozen=True)
class Settings:
    """The settings of the embedded world.

    max_steps: the player's turns; after them, the unfinished conversation is judged.
    style: "short" uses a few words, for tiny models; "full" uses sentences.
    scenarios: names of the scenarios to draw from; None for all.
    invalid_reward: reward of a turn without a recognised act.
    judge_noise: standard deviation, in points, of a normal error that is added to the goal score before rounding. The
        conversation alone determines the error.

    Raises ValueError that names the setting and its allowed values.
    """

    max_steps: int = 20
    style: str = "full"
    scenarios: tuple[str, ...] | None = None
    invalid_reward: float = 0.0
    judge_noise: float = 0.0

    def __post_init__(self):
        _whole("max_steps", self.max_steps, 1)
        if self.style not in STYLES:
            raise ValueError(f"style={self.style!r}: give {' or '.join(STYLES)}")
        if self.scenarios is not None:
            if isinstance(self.scenarios, str) or not self.scenarios:
                raise ValueError(f"scenarios={self.scenarios!r}: give a list of names from {', '.join(SCENARIOS)}")
            unknown = sorted(set(self.scenarios) - set(SCENARIOS))
            if unknown:
                raise ValueError(f"unknown SOTOPIA scenario {', '.join(unknown)}; the scenarios are {', '.join(SCENARIOS)}")
            object.__setattr__(self, "scenarios", tuple(self.scenarios))
        _number("invalid_reward", self.invalid_reward)
        _number("judge_noise", self.judge_noise, 0)


@dataclass(frozen=True)
class PackageSettings:
    """The settings of the benchmark's own package, `sotopia`, with a partner and a judge behind OpenAI-compatible endpoints.

    data: folder with the benchmark's envs.json, agents.json and env_agent_combos.json.
    partner_url, judge_url: addresses up to and including /v1; /chat/completions is appended. judge_url defaults to partner_url.
    partner_model, judge_model: the models' names on the servers. judge_model defaults to partner_model.
    key_variable: environment variable with the API key. No key is sent if it is unset. The settings hold only its name.
    max_steps: the policy's turns. The package counts the turns of both agents, so its own limit is 2 · max_steps.
    partner_prompt: None for the package's own agent, which answers in JSON; or istar, spa or compact, to prompt and parse the
        partner like the policy. With a server of the policy at partner_url, that is self-play.
    subset: "all" holds out a fifth of the scenarios; "hard" holds out the 14 of SOTOPIA-hard, 70 of the 450 pairings.
    split_seed: seeds the division of "all" into train and held_out.
    seat: the agent that the policy plays, 0 or 1; None alternates by the task's seed.
    temperature: sampling temperature of the partner; the judge uses 0.
    timeout_s: seconds for one request. retries: tries of a request after the first. backoff_s: seconds before the first retry.
    cache: folder for judgements and for finished conversations that could not be judged; None stores neither.
    storage: folder that the package may write to; None makes a temporary one.
    invalid_reward: reward of a turn without an utterance.

    An empty string, as in a config that has yet to be filled in, counts as None.
    Raises ValueError that names the setting and its allowed values.
    """

    data: str | None = None
    partner_url: str | None = None
    partner_model: str = "default"
    judge_url: str | None = None
    judge_model: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    max_steps: int = 10
    partner_prompt: str | None = None
    subset: str = "all"
    split_seed: int = 0
    seat: int | None = None
    temperature: float = 0.7
    timeout_s: float = 60.0
    retries: int = 3
    backoff_s: float = 0.5
    cache: str | None = None
    storage: str | None = None
    invalid_reward: float = 0.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.default is None and getattr(self, field.name) == "":
                object.__setattr__(self, field.name, None)
        for name in ("max_steps", "split_seed", "retries"):
            _whole(name, getattr(self, name), 1 if name == "max_steps" else 0)
        for name, least in (("temperature", 0), ("timeout_s", 0), ("backoff_s", 0), ("invalid_reward", None)):
            _number(name, getattr(self, name), least)
        if self.timeout_s == 0:
            raise ValueError("timeout_s=0: give a number of seconds, greater than 0")
        if self.partner_prompt not in (None, *PROMPTS):
            raise ValueError(f"partner_prompt={self.partner_prompt!r}: give {', '.join(PROMPTS)} or None")
        if self.subset not in SUBSETS:
            raise ValueError(f"subset={self.subset!r}: give {' or '.join(SUBSETS)}")
        if self.seat not in (None, 0, 1):
            raise ValueError(f"seat={self.seat!r}: give 0, 1 or None")
        for name in ("data", "cache", "storage"):
            value = getattr(self, name)
            if isinstance(value, Path):
                object.__setattr__(self, name, str(value))
            elif value is not None and not isinstance(value, str):
                raise ValueError(f"{name}={value!r}: give a path, or None")
        for name in ("partner_url", "judge_url"):
            value = getattr(self, name)
            if value is not None:
                check_url(name, value)
        for name in ("partner_model", "judge_model", "key_variable"):
            value = getattr(self, name)
            if not (isinstance(value, str) and value.strip()) and not (name == "judge_model" and value is None):
                raise ValueError(f"{name}={value!r}: give a name, not an empty string")
        if not self.key_variable.isidentifier():
            raise ValueError("key_variable: give the name of an environment variable, not a key")


def check_url(name: str, url: str) -> None:
    """Raises ValueError unless `url` is an http(s) address without credentials. The message never repeats them."""
    parts = urlsplit(url) if isinstance(url, str) else None
    if parts is not None and "@" in url:
        raise ValueError(f"{name}: put no user or password into the address; set key_variable to the environment variable with the key")
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{name}: give an address such as http://127.0.0.1:8000/v1")


def _whole(name: str, value, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}: give a whole number, at least {least}")


def _number(name: str, value, least: float | None = None) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value and abs(value) != float("inf")
    if not good or (least is not None and value < least):
        raise ValueError(f"{name}={value!r}: give a number" + ("" if least is None else f", at least {least}"))


PRESETS: dict[str, Settings | PackageSettings] = {
    # Six turns in short forms, for models trained from scratch.
    "tiny": Settings(max_steps=6, style="short", scenarios=("bike", "salary", "noise", "film")),
    # iStar (arXiv 2509.19199): 20 turns.
    "istar": Settings(max_steps=20),
    "spa": Settings(max_steps=20),
    # The benchmark: 20 turns in total, ten for each agent.
    "sotopia": PackageSettings(),
}


def settings(preset: str = "tiny", **overrides) -> Settings | PackageSettings:
    """Returns the settings of a preset, with the fields in `overrides` replaced. Raises ValueError for an unknown preset or field."""
    return settings_of("SOTOPIA", PRESETS, preset, overrides)
