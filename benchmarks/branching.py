"""Compares the speed of rollouts that branch with that of plain episodes: seconds for each sampled token.

    python benchmarks/branching.py                      # 8 groups of 8 leaves, 8 turns, both ways of showing history
    python benchmarks/branching.py --quick              # a smoke test; its figures mean nothing
    python benchmarks/branching.py --context=episode --model=tiny-2m --repeats=7 --json=branching.json

Prompts and answers have a fixed number of random tokens, and the environment never ends, so the work of each arm is known. It keeps
snapshots, as pickles, like every environment in a run. The model has random weights.

The arms, each with `--groups` tasks:
* chain: as many episodes as are decoded at once (`--groups` times 8), each of `--turns` turns.
* tree: branching (2, 2, 2) with segments of two turns.
* entropy_branch: 4 episodes from the root, and 4 branches.
* restore: one episode, and four continuations from each of its states.
* once: one episode, and one continuation from each of its states.
* cuts: one episode, and four continuations from each of its cuts.

The arms run in the order A B C A B C …, after a warm-up that is not timed. The ratio compares an arm with the chain of the same repeat,
each divided by its sampled tokens; tokens of prompts that are read again are work that is not counted. The aim is at most 1.20.
"""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial

import jax
import measure  # imported before stepreward, because it makes the project importable
from conversations import Endless, Source, random_tokens

from stepreward.envs.protocol import SNAPSHOT
from stepreward.errors import UserError, launcher
from stepreward.models import decoder
from stepreward.rollout import strategies
from stepreward.rollout.checked import checked
from stepreward.rollout.engine import Engine
from stepreward.rollout.environments import EnvironmentPool
from stepreward.rollout.episode import Cost, Task
from stepreward.rollout.play import Collector
from stepreward.rollout.sampling import Sampling

LEAVES = 8
ARMS = {
    "chain": ("chain", LEAVES, {}),
    "tree": ("tree", LEAVES, {"branching": (2, 2, 2), "segment_steps": 2}),
    "entropy_branch": ("entropy_branch", LEAVES, {"n0": 4, "p": 0.5}),
    "restore": ("restore", 1, {"k": 4}),
    "once": ("restore", 1, {"k": 1}),
    "cuts": ("restore", 1, {"k": 4, "at": "cuts", "tokens_per_cut": 32}),
}  # name: (strategy, episodes of a group, options)


class Restorable(Endless):
    """An environment that never ends, and can be restored."""

    capabilities = frozenset({SNAPSHOT})

    def snapshot(self):
        return self._next

    def restore(self, state):
        self._next = state


class _Speech:
    """The chat of `conversations.random_tokens`, with the vocabulary's size."""

    def __init__(self, speech, vocab_size: int):
        self._speech, self.codec = speech, self
        self.vocab_size = vocab_size

    def __getattr__(self, name):
        return getattr(self._speech, name)


@dataclasses.dataclass
class Arm:
    """One strategy; `cost` is that of its last rollout."""

    strategy: strategies.Strategy
    collector: Collector
    params: object
    tasks: list[Task]
    cost: Cost = Cost()

    def play(self) -> None:
        """Plays one rollout."""
        self.cost = self.strategy(self.collector.player(self.params), self.tasks, jax.random.key(0)).cost

    def run(self) -> measure.Time:
        """Plays one rollout and returns its time."""
        return measure.timed(self.play)


def make_collector(source: Source, model, context: str, turns: int, rows: int) -> Collector:
    """Returns a collector for conversations of a source; `model` is `(config, graphdef, params)`."""
    config, graphdef, _ = model
    buckets = (source.later + 1,) if context == "episode" else (source.first,)
    length = source.length(turns if context == "episode" else 1)
    engine = Engine(graphdef, config, Sampling((), source.answer), length, buckets, source.pad_id)
    pool = EnvironmentPool(checked(partial(Restorable, [str(number) for number in range(rows * turns)])))
    chat = _Speech(source.chat, config.vocab_size)
    return Collector(engine, pool, source.prompt, chat, context, 0, turns, rows)


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 group, short texts, one context, one repeat")
    parser.add_argument("--model", default="tiny-0.1m", help=f"shape of the model: {', '.join(measure.MODELS)}")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="dtype of weights, cache and computation")
    parser.add_argument("--context", default="both", choices=("step", "episode", "both"), help="a turn is a whole prompt, or goes on")
    parser.add_argument("--groups", type=int, default=8, help="number of tasks")
    parser.add_argument("--turns", type=int, default=8, help="turns of an episode, at least 5")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each user turn")
    parser.add_argument("--answer", type=int, default=16, help="tokens of each answer")
    parser.add_argument("--repeats", type=int, default=5, help="timed rollouts of each arm; the median counts")
    parser.add_argument("--json", metavar="PATH", help="file to write the figures to")
    options = parser.parse_args()
    if options.quick:
        options.groups, options.repeats, options.turns, options.prompt, options.answer = 1, 1, 5, 3, 2
        options.context = "step" if options.context == "both" else options.context
    for name in ("groups", "prompt", "answer", "repeats"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}={getattr(options, name)} must be at least 1.")
    if options.turns < 5:
        raise UserError(f"--turns={options.turns} must be at least 5, so that the tree has its last level.")
    return options


def main() -> None:
    options = parse()
    rows, turns = options.groups * LEAVES, options.turns
    config = measure.model_config(options.model, options.dtype, scan_layers=False)  # unstacked layers, as decoding needs them
    model = (config, *decoder.build(config, 0))
    source, _ = random_tokens(options.prompt, options.answer, turns, rows, config.vocab_size)
    facts = measure.machine()
    print(f"{options.model}, {options.dtype}, {rows} rows, {options.repeats} repeats, {facts['device']}, {facts['cores']} cores")
    arms = {}
    for context in ("step", "episode") if options.context == "both" else (options.context,):
        collector = make_collector(source, model, context, turns, rows)
        for name, (strategy, size, more) in ARMS.items():
            tasks = [Task(group * turns, "train", group) for group in range(options.groups) for _ in range(size)]
            arms[name, context] = Arm(strategies.make(strategy, **more), collector, model[2], tasks)
    seconds = measure.in_turn({key: arm.run for key, arm in arms.items()}, options.repeats)

    results, ratios = [], {}
    print(f"{'arm':>15} {'context':>8} {'median s':>9} {'(range)':>17} {'steps':>7} {'sampled':>8} {'read':>8} {'sampled/s':>10}")
    for (name, context), found in seconds.items():
        cost, r = arms[name, context].cost, measure.summary(found)
        results.append({"arm": name, "context": context, **cost._asdict(), **r, "sampled_per_s": cost.sampled_tokens / r["seconds"]})
        figures = f"{cost.env_steps:>7} {cost.sampled_tokens:>8} {cost.prompt_tokens:>8} {results[-1]['sampled_per_s']:>10.0f}"
        print(f"{name:>15} {context:>8} {r['seconds']:>9.3f} {measure.spread(r):>17} {figures}")
    print()
    for name, context in seconds:
        if name != "chain":
            each = {key: [_per_token(time, arms[key].cost) for time in seconds[key]] for key in ((name, context), ("chain", context))}
            r = ratios[f"{name} / chain, {context}"] = measure.ratio(each[name, context], each["chain", context])
            print(measure.show_ratio(f"{name} / chain, {context}", r, "at most 1.20"))
    figures = {name: getattr(options, name) for name in ("model", "dtype", "groups", "turns", "prompt", "answer", "repeats", "quick")}
    measure.write_json(options.json, figures | facts | {"results": results, "ratios": ratios})


def _per_token(time: measure.Time, cost: Cost) -> measure.Time:
    return measure.Time(time.wall / cost.sampled_tokens, time.cpu / cost.sampled_tokens)


if __name__ == "__main__":
    launcher(main)
