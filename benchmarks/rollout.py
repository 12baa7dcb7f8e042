"""Measures the speed of rollouts: what a kept KV cache saves, how time grows with turns, and the distance to the device's limit.

    python benchmarks/rollout.py                      # 64 episodes of Sokoban's size; 8, 15 and 32 turns; 15 also without the cache
    python benchmarks/rollout.py --quick              # a smoke test; its figures mean nothing
    python benchmarks/rollout.py --model=tiny-2m --json=rollout.json
    python benchmarks/rollout.py --model=llama-tiny --batch=16 --turns=8 --prompt=48 --answer=16 --tunix-python=PYTHON
    python benchmarks/rollout.py --model=llama-tiny --batch=16 --turns=1 --prompt=64 --answer=64 --tunix-python=PYTHON
    python benchmarks/rollout.py --model=MODEL --dtype=bfloat16 --batch=64 --turns=1 --prompt=512 --answer=256 --bandwidth=4800

Episodes are conversations (`context="episode"`) with an environment that never ends, so every episode plays all turns. The
model has random weights. Without `--prompt`, turns are boards of Sokoban's size and answers have up to two tokens. With it, each turn
has that many random tokens, and each answer exactly `--answer` tokens.

The arms play the same conversations:
* kept: the cache stays on the device; a turn prefills only its new tokens.
* prefilled: each turn prefills the whole conversation again (`Collector(reuse_cache=False)`). It has one prefill bucket and one
  cache size for each turn, exactly the longest conversation of that turn, so it never computes on more padding than "kept".
* tunix bucketed, tunix exact (with `--tunix-python`): Tunix's sampler, see `tunix_arm.py`. Before the timing, both libraries
  decode greedily and must produce the same tokens.

A warm-up rollout compiles each arm; it is not timed. Then the arms run in the order A B C A B C …. Times are medians over repeats
of whole rollouts, including the host loop and the environments (for Tunix, only the calls of its sampler).

`--bandwidth` (GB/s of the device's memory) adds the share of the roofline: the time to read the weights and the cache once per token
step, divided by the measured decoding time. That is a rollout's time minus the time of the same rollout with one-token answers; with
several turns it includes some prefilling, so the share is underestimated.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from functools import partial

import jax
import measure  # imported before stepreward, because it makes the project importable
import numpy as np
from conversations import Source, boards, random_tokens

from stepreward.errors import UserError, launcher
from stepreward.models import decoder
from stepreward.rollout.engine import Engine
from stepreward.rollout.environments import EnvironmentPool
from stepreward.rollout.episode import Task
from stepreward.rollout.play import SCHEDULES, Collector
from stepreward.rollout.sampling import Sampling

SAME = 0.99  # least share of greedy tokens on which the libraries must agree; rounding may break near-ties differently


@dataclasses.dataclass
class Arm:
    """One way of playing rollouts; `episodes` holds the last one."""

    name: str
    turns: int
    collector: Collector
    params: object
    tasks: list[Task]
    episodes: list = dataclasses.field(default_factory=list)

    def play(self) -> None:
        """Plays one rollout."""
        self.episodes = self.collector.collect(self.params, self.tasks, jax.random.key(0))

    def run(self) -> measure.Time:
        """Plays one rollout and returns its time."""
        return measure.timed(self.play)

    def sampled(self) -> np.ndarray:
        """Returns all sampled tokens, episode by episode."""
        return np.concatenate([step.action_tokens for episode in self.episodes for step in episode.steps])

    def work(self) -> dict[str, int]:
        """Counts the steps and tokens of the last rollout."""
        steps = [step for episode in self.episodes for step in episode.steps]
        if len(steps) != len(self.tasks) * self.turns:
            raise UserError(f"arm {self.name!r} ended an episode early: {len(steps)} steps, not {len(self.tasks) * self.turns}.")
        sampled = sum(len(step.action_tokens) for step in steps)
        return {"steps": len(steps), "sampled": sampled, "tokens": sampled + sum(len(step.prompt_tokens) for step in steps)}


def make_arm(name: str, source: Source, model, turns: int, batch: int, *, reuse=True, answer=None, greedy=False, schedule="batch") -> Arm:
    """Makes an arm of this project; `model` is `(config, graphdef, params)`, and `answer` overrides the source's value."""
    config, graphdef, params = model
    answer = answer or source.answer
    source = source._replace(answer=answer)
    if reuse:
        # A later turn prefills the last sampled token, the closing token if there is one, and the user turn; the first only the latter.
        buckets = (max(source.first, source.later + 1 + source.closing),)
    else:
        buckets = tuple(source.length(turn) - answer for turn in range(1, turns + 1))
    sampling = Sampling(source.chat.stop_ids, answer, temperature=0.0 if greedy else 1.0)
    engine = Engine(graphdef, config, sampling, source.length(turns) + source.closing, buckets, source.pad_id)
    if not reuse:
        engine.slot_buckets = tuple(bucket + answer for bucket in buckets)
    pool = EnvironmentPool(source.environment)
    collector = Collector(engine, pool, source.prompt, source.chat, "episode", 0, turns, batch, reuse, schedule=schedule)
    return Arm(name, turns, collector, params, [Task(index * turns, "train", index) for index in range(batch)])


def add_tunix(python: str, folder: str, model, source, said, turns, batch) -> tuple[measure.TunixArm, dict]:
    """Adds Tunix's arms, after a check that both libraries produce the same tokens."""
    config, _, params = model
    tunix = measure.TunixArm(python, folder, config, params)
    prompts, names = tunix.save(prompts=said), {"tunix bucketed": False, "tunix exact": True}
    ours = make_arm("greedy", source, model, turns, batch, greedy=True)
    ours.play()
    for name, exact in names.items():
        tunix.ask("rollout", name=name, prompts=prompts, answer=source.answer, exact=exact)
        theirs = np.concatenate([np.asarray(row) for row in tunix.ask("play", name=name, greedy=True)["tokens"]])
        same = float(np.mean(theirs == ours.sampled()))
        if same < SAME:
            raise UserError(f"{name} and this project agree on only {same:.1%} of the greedy tokens, so their times cannot be compared.")
        print(f"{name}: {same:.2%} of {theirs.size} greedy tokens equal")
    return tunix, {name: partial(tunix.time, "play", name=name) for name in names}


def roofline(arm, seconds, one_token_seconds, model, source, turns, batch, bandwidth) -> dict:
    """Returns the share of the memory bandwidth that decoding reaches."""
    config, _, params = model
    lengths = [source.length(turn) - source.answer + at for turn in range(1, turns + 1) for at in range(1, source.answer)]
    read, decoding = measure.decode_bytes(config, params, batch, lengths), seconds - one_token_seconds
    found = {"decode_gigabytes": read / 1e9, "decode_seconds": decoding, "token_step_ms": 1e3 * decoding / len(lengths)}
    return found | {"share_of_bandwidth": read / 1e9 / bandwidth / decoding, "bandwidth_gb_s": bandwidth}


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 episodes, few turns, one repeat")
    parser.add_argument("--model", default="tiny-0.1m", help=f"shape of the model: {', '.join(measure.MODELS)}")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="dtype of weights, cache and computation")
    parser.add_argument("--batch", type=int, default=64, help="number of concurrent episodes")
    parser.add_argument(
        "--turns", help="comma-separated numbers of turns (default: 8,15,32; with --prompt: 8); the arms are compared at the middle one"
    )
    parser.add_argument("--prompt", type=int, help="number of random tokens in each user turn, instead of boards")
    parser.add_argument("--answer", type=int, default=16, help="number of tokens in each answer, with --prompt")
    parser.add_argument("--schedule", default="batch", choices=SCHEDULES, help="rollout.schedule of the arms that keep the cache")
    parser.add_argument("--repeats", type=int, default=5, help="timed rollouts of each arm; the median counts")
    parser.add_argument("--kept-only", action="store_true", help="skip the arm that prefills whole conversations")
    parser.add_argument("--bandwidth", type=float, metavar="GB/S", help="memory bandwidth of the device")
    parser.add_argument("--tunix-python", metavar="PATH", help="Python of an environment with Tunix; adds its arms")
    parser.add_argument("--json", metavar="PATH", help="file to write the figures to")
    options = parser.parse_args()
    if options.quick:
        options.batch, options.repeats, options.turns = 4, 1, options.turns or "2,4,8"
        if options.prompt:
            options.turns, options.prompt, options.answer = "2", 3, 2
    try:
        turns = (options.turns or ("8" if options.prompt else "8,15,32")).split(",")
        options.turns = sorted(int(number) for number in turns)
    except ValueError:
        raise UserError(f"--turns={options.turns} is not a comma-separated list of numbers.") from None
    for name in ("batch", "answer", "repeats", "prompt"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name}={getattr(options, name)} must be at least 1.")
    if options.turns[0] < 1:
        raise UserError(f"--turns={options.turns[0]} must be at least 1.")
    if options.tunix_python and not options.prompt:
        raise UserError("--tunix-python needs --prompt, because the Tunix arm plays random tokens.")
    return options


def main() -> None:
    options = parse()
    batch, compared = options.batch, options.turns[len(options.turns) // 2]
    if options.prompt:
        config = measure.model_config(options.model, options.dtype, scan_layers=False)  # unstacked layers, as decoding needs them
        source, said = random_tokens(options.prompt, options.answer, max(options.turns), batch, config.vocab_size)
    else:
        source, said = boards(), None
        config = measure.model_config(options.model, options.dtype, vocab=-(-source.vocab // 8) * 8, scan_layers=False)
    model = (config, *decoder.build(config, 0))
    arms = [make_arm("kept", source, model, turns, batch, schedule=options.schedule) for turns in options.turns]
    if compared > 1 and not options.kept_only:
        arms.append(make_arm("prefilled", source, model, compared, batch, reuse=False))
    kept = arms[options.turns.index(compared)]
    one_token = make_arm("one token", source, model, compared, batch, answer=1) if options.bandwidth else None
    facts = measure.machine()
    print(f"{options.model}, {options.dtype}, {batch} episodes, {options.repeats} repeats, {facts['device']}, {facts['cores']} cores")

    with tempfile.TemporaryDirectory() as folder:
        tunix, runs = None, {(arm.name, arm.turns): arm.run for arm in arms}
        if options.tunix_python:
            tunix, more = add_tunix(options.tunix_python, folder, model, source, said[:compared], compared, batch)
            runs |= {(name, compared): run for name, run in more.items()}
        if one_token:
            runs["one token", compared] = one_token.run
        seconds = measure.in_turn(runs, options.repeats)
        if tunix:
            tunix.close()

    results = []
    print(f"{'arm':>15} {'turns':>6} {'median s':>9} {'(range)':>17} {'steps/s':>10} {'sampled/s':>10} {'tokens/s':>10}")
    for (name, turns), found in seconds.items():
        r, work = measure.summary(found), next(arm for arm in arms if arm.turns == turns).work()
        r = {"arm": name, "turns": turns, **r}
        if name != "one token":
            r |= {"env_steps_per_s": work["steps"] / r["seconds"], "sampled_tokens_per_s": work["sampled"] / r["seconds"]}
            r["tokens_per_s"] = work["tokens"] / r["seconds"]
        results.append(r)
        speed = [f"{r[key]:>10.0f}" for key in ("env_steps_per_s", "sampled_tokens_per_s", "tokens_per_s") if key in r]
        print(f"{name:>15} {turns:>6} {r['seconds']:>9.3f} {measure.spread(r):>17}", *speed)
    prefilled = next((arm for arm in arms if arm.name == "prefilled"), None)
    if prefilled and not np.array_equal(prefilled.sampled(), kept.sampled()) and options.dtype == "float32":
        raise UserError("the arms sampled different tokens, so their times cannot be compared.")

    figures = {"model": options.model, "dtype": options.dtype, "batch": batch, "repeats": options.repeats, "quick": options.quick}
    figures |= {"prompt": options.prompt, "answer": source.answer, **facts, "results": results, "ratios": {}}
    print()
    for (name, turns), found in seconds.items():
        if name not in ("kept", "one token"):
            target = {"tunix bucketed": "at least 1.30" if compared == 1 else "at least 3.00"}.get(name, "")
            r = figures["ratios"][f"{name} / kept"] = measure.ratio(found, seconds["kept", compared])
            print(measure.show_ratio(f"{name} / kept at {turns} turn{'s' * (turns > 1)}", r, target))
    if len(options.turns) > 1:
        first, last = options.turns[0], options.turns[-1]
        r = figures["ratios"]["most / fewest turns"] = measure.ratio(seconds["kept", last], seconds["kept", first])
        print(measure.show_ratio(f"{last} turns / {first} turns, kept", r))
    if options.bandwidth:
        medians = [measure.summary(seconds[name, compared])["seconds"] for name in ("kept", "one token")]
        figures["roofline"] = roofline(kept, *medians, model, source, compared, batch, options.bandwidth)
        print("decoding: " + ", ".join(f"{name} {value:.4g}" for name, value in figures["roofline"].items()))
    figures["peak_memory_gib"] = measure.peak_memory_gib()
    if figures["peak_memory_gib"] is not None:
        print(f"peak memory: {figures['peak_memory_gib']:.2f} GiB")
    measure.write_json(options.json, figures)


if __name__ == "__main__":
    launcher(main)
