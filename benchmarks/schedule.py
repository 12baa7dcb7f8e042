"""Measures what it costs that rows wait for each other: answers of skewed length, and environments that take their time.

    python benchmarks/schedule.py                     # 64 episodes of 8 turns in 16 rows
    python benchmarks/schedule.py --quick             # a smoke test; its figures mean nothing
    python benchmarks/schedule.py --delay=0 --json=schedule.json      # environments that answer at once

The lengths of answers are log-normal with mean `--mean` and at most `--most` tokens, and the environment's steps take 0 to `--delay` ms, uniformly. Both
are drawn from the episode and the turn alone, so all arms play the same episodes. The model has random weights. The arms are the values of
`rollout.schedule`:
* free: a row whose answer has ended goes to its environment while others decode.
* lockstep: the same programs; every turn waits for the longest answer and the slowest environment.
* batch: one program a turn, whose batch shrinks as episodes end.

A warm-up rollout compiles each arm and is not timed. Then the arms run in the order A B C A B C …. Times are medians over repeats of whole
rollouts. "Useful" tokens are those of prompts and answers, without padding.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from functools import partial

import jax
import jax.numpy as jnp
import measure  # imported before stepreward, because it makes the project importable
import numpy as np
from conversations import Endless, random_tokens

from stepreward.errors import UserError, launcher
from stepreward.models import decoder
from stepreward.rollout.engine import Engine
from stepreward.rollout.environments import ThreadPool
from stepreward.rollout.episode import Task
from stepreward.rollout.play import SCHEDULES, Collector
from stepreward.rollout.sampling import Sampling

STOP, SIGMA = 0, 1.0  # the stop token, and the standard deviation of a length's logarithm


class Slow(Endless):
    """Steps that take a time which depends on the seed and the turn."""

    delay = 0.0

    def step(self, action):
        time.sleep(self.delay * np.random.default_rng(self._next).random())
        return super().step(action)


def skewed(mean: float, most: int) -> type[Engine]:
    """An engine whose answers have log-normal lengths. The mean is that of the lengths before they are cut at `most`."""
    middle = math.log(mean) - SIGMA**2 / 2

    def draw(hidden_BxD, head_DxV, keys_B, index, sampling):
        log_p, token = Engine.draw(hidden_BxD, head_DxV, keys_B, index, sampling)
        longest = jax.vmap(lambda key: jnp.exp(middle + SIGMA * jax.random.normal(jax.random.fold_in(key, 2**20))))(keys_B)
        ends = jnp.broadcast_to(index, token.shape) + 1 >= jnp.clip(longest, 1, most)
        return log_p, jnp.where(ends, STOP, jnp.maximum(token, 1))

    return type("Skewed", (Engine,), {"draw": staticmethod(draw)})


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 short episodes in 4 rows, one repeat")
    parser.add_argument("--model", default="tiny-2m", help=f"shape of the model: {', '.join(measure.MODELS)}")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--rows", type=int, default=16, help="episodes decoded at once")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=48, help="random tokens of a user turn")
    parser.add_argument("--mean", type=float, default=40.0, help="mean length of an answer")
    parser.add_argument("--most", type=int, default=256, help="length of the longest answer")
    parser.add_argument("--delay", type=float, default=50.0, help="milliseconds of the slowest step of an environment")
    parser.add_argument("--repeats", type=int, default=5, help="timed rollouts of each arm; the median counts")
    parser.add_argument("--json", metavar="PATH", help="file to write the figures to")
    options = parser.parse_args()
    if options.quick:
        options.episodes, options.rows, options.turns, options.repeats = 8, 4, 2, 1
        options.prompt, options.mean, options.most, options.delay = 3, 4.0, 8, 1.0
    for name in ("episodes", "rows", "turns", "prompt", "mean", "most", "repeats"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}={getattr(options, name)} must be at least 1.")
    if options.delay < 0:
        raise UserError(f"--delay={options.delay} must be at least 0.")
    return options


def main() -> None:
    options = parse()
    config = measure.model_config(options.model, "float32", scan_layers=False)
    source, _ = random_tokens(options.prompt, options.most, options.turns, options.episodes, config.vocab_size)
    graphdef, params = decoder.build(config, 0)
    engine = skewed(options.mean, options.most)(
        graphdef, config, Sampling((STOP,), options.most), source.length(options.turns), (options.prompt + 1,), source.pad_id
    )
    Slow.delay = options.delay / 1e3
    texts = source.environment()._texts
    tasks = [Task(index * options.turns, "train", index) for index in range(options.episodes)]
    played: dict[str, list] = {}
    with ThreadPool(lambda: Slow(texts)) as pool:
        collector = Collector(engine, pool, source.prompt, source.chat, "episode", 0, options.turns, options.rows)

        def play(schedule: str) -> measure.Time:
            one = dataclasses.replace(collector, schedule=schedule)
            return measure.timed(lambda: played.update({schedule: one.collect(params, tasks, jax.random.key(0))}))

        seconds = measure.in_turn({schedule: partial(play, schedule) for schedule in SCHEDULES}, options.repeats)
    steps = [step for episode in played["free"] for step in episode.steps]
    for schedule in SCHEDULES[1:]:
        others = [step for episode in played[schedule] for step in episode.steps]
        if len(steps) != len(others) or any(not np.array_equal(a.action_tokens, b.action_tokens) for a, b in zip(steps, others)):
            raise UserError(f"the arms 'free' and {schedule!r} played different episodes, so their times cannot be compared.")
    lengths = np.array([len(step.action_tokens) for step in steps])
    useful = int(lengths.sum()) + sum(len(step.prompt_tokens) for step in steps)
    facts = measure.machine()
    print(
        f"{options.model}, {options.episodes} episodes of {options.turns} turns in {options.rows} rows, {facts['device']}, {facts['cores']} cores"
    )
    print(f"answers: mean {lengths.mean():.1f}, median {np.median(lengths):.0f}, longest {lengths.max()}; {useful:,} useful tokens\n")
    print(f"{'schedule':>10} {'median s':>9} {'(range)':>17} {'useful tokens/s':>16}")
    results = []
    for schedule, found in seconds.items():
        r = {"schedule": schedule, **measure.summary(found)}
        results.append(r | {"useful_tokens_per_s": useful / r["seconds"]})
        print(f"{schedule:>10} {r['seconds']:>9.3f} {measure.spread(r):>17} {useful / r['seconds']:>16,.0f}")
    ratios = {f"{schedule} / free": measure.ratio(seconds[schedule], seconds["free"]) for schedule in SCHEDULES[1:]}
    print()
    for name, r in ratios.items():
        print(measure.show_ratio(name, r))
    shown = {
        key: getattr(options, key) for key in ("model", "episodes", "rows", "turns", "prompt", "mean", "most", "delay", "repeats", "quick")
    }
    answers = {"mean_answer": float(lengths.mean()), "longest_answer": int(lengths.max()), "useful_tokens": useful}
    measure.write_json(options.json, shown | answers | facts | {"results": results, "ratios": ratios})


if __name__ == "__main__":
    launcher(main)
