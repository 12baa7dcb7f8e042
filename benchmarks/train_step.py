"""Measures the cost of a training step: policy update, PRM update and scoring, and iStar's whole step compared with GRPO's.

    python benchmarks/train_step.py                   # 16 rows of 128 tokens, a small Llama
    python benchmarks/train_step.py --quick           # a smoke test; its figures mean nothing
    python benchmarks/train_step.py --steps=1 --tunix-python=PYTHON
    python benchmarks/train_step.py --model=MODEL --dtype=bfloat16 --params=float32 --rows=64 --length=4096 --chunk-rows=4 --peak=989

A row is an episode of `--steps` steps. Each step has as many random prompt tokens as random action tokens, and every group has
successes and failures. Each part is timed until its last array is ready:
* score: a forward pass of the PRM.  prm: its DPO update.  policy: the clipped update, one epoch.
* grpo step: credit and policy update.
* istar step: scoring, credit, PRM update and policy update. `--epochs` is the number of policy updates on the rows in both steps.
* tunix (with `--tunix-python`, and one step per row): Tunix's jitted GRPO step, see `tunix_arm.py`, compared with `policy`. Both get the
  same tokens, advantages, old log-probabilities and AdamW, with token-level clipping and no KL term. Before the timing, the loss and
  the gradient norm of the first update must agree.

After a warm-up that compiles, the parts run in the order A B C A B C …. Model FLOPs are 2 · parameters · tokens plus causal attention
for a forward pass, and three times that for an update. Recomputation (chunks, rematerialisation) adds nothing, and skipped work
(positions without an action in the last layer) subtracts nothing. `--peak` (TFLOP/s of the device at that precision) adds the share of
the peak that is reached (MFU).
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial

import jax
import measure  # imported before stepreward, because it makes the project importable
import numpy as np

from stepreward.credit import make
from stepreward.errors import UserError, launcher
from stepreward.models import decoder
from stepreward.rollout.episode import Episode, Step, Task
from stepreward.rollout.packing import pack
from stepreward.training.auxiliaries.prm import score
from stepreward.training.auxiliaries.update import LogProbs, auxiliary_step
from stepreward.training.policy import PolicyLoss, policy_step
from stepreward.training.state import OptimizerConfig, create

CLIP = 0.2
ADAMW = {"learning_rate": 1e-4, "b1": 0.9, "b2": 0.999, "weight_decay": 0.0, "max_grad_norm": 1.0}
LOSS = PolicyLoss(ratio="token", aggregation="token-mean", clip_low=CLIP, clip_high=CLIP)


def random_batch(rows: int, length: int, steps: int, group: int, vocab: int):
    """Makes a batch of episodes of random tokens (never 0, the padding), one per row; half of each group succeed."""
    rng, size = np.random.default_rng(0), length // (2 * steps)
    episodes = []
    for index in range(rows):
        episode = Episode(Task(index // group, "train", index // group), success=index % 2 == 0)
        for _ in range(steps):
            prompt, answer = rng.integers(1, vocab, (2, size)).astype(np.int32)
            zeros = np.zeros(size, np.float32)
            episode.steps.append(Step(prompt, answer, zeros, zeros, "", "", "on", 0.0, True, ""))
        episodes.append(episode)
    return pack(episodes, context="episode", max_steps=steps, row_length=length, row_multiple=rows, pad_id=0, outcome="success")


class Job:
    """Models, optimizer and one batch. Each method is a part to be timed; it returns its last arrays."""

    def __init__(self, options):
        o = options
        self.config = measure.model_config(o.model, o.dtype, params=o.params, remat=o.remat, attention=o.attention)
        self.graphdef, self.params = decoder.build(self.config, 0)
        self.optimizer = OptimizerConfig(**ADAMW).make()
        self.epochs, self.istar, self.grpo = o.epochs, make("istar"), make("grpo")
        answers = o.length // 2
        self.model = dict(graphdef=self.graphdef, chunk_rows=o.chunk_rows, temperature=1.0, max_actions=answers if o.steps == 1 else None)
        batch = random_batch(o.rows, o.length, o.steps, o.group, self.config.vocab_size)
        old = np.asarray(score(self.params, batch, **self.model)[0])
        self.batch = jax.device_put(batch.replace(log_prob_old=old))
        self.forward = measure.forward_flops(self.config, self.params, o.rows, o.length)
        self.policy_state, self.prm_state = (create(self.params, self.optimizer) for _ in range(2))
        self.advantage = credit(self.grpo, self.batch)

    def score(self):
        """Runs a forward pass of the PRM."""
        return score(self.prm_state.params, self.batch, **self.model)

    def prm(self):
        """Updates the PRM."""
        passes = {name: value for name, value in self.model.items() if name != "temperature"}
        what = dict(name="prm", outputs=LogProbs(self.model["temperature"]), method=self.istar)
        self.prm_state, out = auxiliary_step(self.prm_state, self.batch, optimizer=self.optimizer, **what, **passes)
        return self.prm_state, out

    def policy(self, advantage=None, epochs=1):
        """Updates the policy."""
        advantage = self.advantage if advantage is None else advantage
        for _ in range(epochs):
            self.policy_state, out = policy_step(
                self.policy_state, self.batch, advantage, optimizer=self.optimizer, loss=LOSS, **self.model
            )
        return self.policy_state, out

    def grpo_step(self):
        """Computes credit and updates the policy."""
        return self.policy(credit(self.grpo, self.batch), self.epochs)

    def istar_step(self):
        """Scores, computes credit, and updates the PRM and the policy."""
        scored = self.batch.with_signals(log_prob_prm=self.score()[0])
        return self.prm(), self.policy(credit(self.istar, scored), self.epochs)


@partial(jax.jit, static_argnums=0)
def credit(method, batch):
    """Returns the advantages `[R, L]`."""
    return method.credit(batch).advantage


def add_tunix(options, folder: str, job: Job):
    """Adds the Tunix arm, after a check that its first update equals ours."""
    tunix = measure.TunixArm(options.tunix_python, folder, job.config, job.params)
    half, batch = options.length // 2, jax.device_get(job.batch)
    arrays = {"prompts": batch.tokens[:, :half], "answers": batch.tokens[:, half:]}
    arrays |= {"advantages": np.asarray(job.advantage)[:, half:], "log_prob_old": batch.log_prob_old[:, half:]}
    tunix.ask("update", batch=tunix.save(**arrays), optimizer=dict(ADAMW), clip=CLIP)
    theirs = tunix.ask("step")
    ours = {name: float(value) for name, value in job.policy()[1].items()}
    print(f"first update: loss {theirs['loss']:.6f} and {ours['loss']:.6f}, gradient {theirs['grad_norm']:.6f} and {ours['grad_norm']:.6f}")
    if abs(theirs["grad_norm"] - ours["grad_norm"]) > 1e-2 * ours["grad_norm"] or abs(theirs["loss"] - ours["loss"]) > 1e-3:
        raise UserError("the first updates of Tunix and this project differ, so their times cannot be compared.")
    return tunix, partial(tunix.time, "step")


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest shape, one repeat")
    parser.add_argument("--model", default="llama-tiny", help=f"shape of the model: {', '.join(measure.MODELS)}")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="dtype of the computation")
    parser.add_argument("--params", choices=("float32", "bfloat16"), help="dtype of the parameters (default: --dtype)")
    parser.add_argument("--remat", default="none", choices=decoder.REMAT, help="what the backward pass recomputes")
    parser.add_argument("--attention", default="auto", help="implementation of attention")
    parser.add_argument("--rows", type=int, default=16, help="number of episodes in the batch")
    parser.add_argument("--length", type=int, default=128, help="number of tokens in a row")
    parser.add_argument("--steps", type=int, default=4, help="number of steps in an episode")
    parser.add_argument("--group", type=int, default=8, help="number of episodes in a group")
    parser.add_argument("--chunk-rows", type=int, help="number of rows in one forward and backward pass (default: all)")
    parser.add_argument("--epochs", type=int, default=1, help="number of policy updates in the two whole steps")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each part; the median counts")
    parser.add_argument("--peak", type=float, metavar="TFLOP/S", help="peak performance of the device")
    parser.add_argument("--tunix-python", metavar="PATH", help="Python of an environment with Tunix; adds its update")
    parser.add_argument("--json", metavar="PATH", help="file to write the figures to")
    options = parser.parse_args()
    if options.quick:
        options.model, options.rows, options.length, options.group, options.repeats = "llama-micro", 4, 16, 4, 1
        options.steps = min(options.steps, 2)
    options.chunk_rows = options.chunk_rows or options.rows
    o = options
    if o.steps < 1 or o.length % (2 * o.steps):
        raise UserError(f"--length={o.length} must be a multiple of twice --steps={o.steps}.")
    if o.group < 2 or o.rows % o.group or o.rows % o.chunk_rows:
        raise UserError(f"--rows={o.rows} must be a multiple of --group={o.group} (at least 2) and of --chunk-rows={o.chunk_rows}.")
    if o.tunix_python and o.steps != 1:
        raise UserError("--tunix-python needs --steps=1, because a row of Tunix is one prompt and one answer.")
    return options


def main() -> None:
    options = parse()
    job, tokens = Job(options), options.rows * options.length
    facts = measure.machine()
    print(
        f"{options.model}, {options.dtype}, {options.rows} rows of {options.length} tokens, {options.repeats} repeats, {facts['device']},"
        f" {facts['cores']} cores"
    )
    epochs = options.epochs
    passes = {"score": 1, "prm": 3, "policy": 3, "grpo step": 3 * epochs, "istar step": 4 + 3 * epochs}  # in forward passes
    parts = {name: getattr(job, name.replace(" ", "_")) for name in passes}
    runs = {name: partial(measure.timed, part) for name, part in parts.items()}
    with tempfile.TemporaryDirectory() as folder:
        tunix = None
        if options.tunix_python:
            tunix, runs["tunix"] = add_tunix(options, folder, job)
            passes["tunix"] = 3
        seconds = measure.in_turn(runs, options.repeats, warm_up=2)
        if tunix:
            tunix.close()

    results = {}
    print(f"{'part':>12} {'median s':>9} {'(range)':>17} {'tokens/s':>10} {'GFLOP/s':>10}" + (f" {'MFU':>7}" if options.peak else ""))
    for name, found in seconds.items():
        r = measure.summary(found)
        r |= {"tokens_per_s": tokens / r["seconds"], "flops": passes[name] * job.forward}
        r["flops_per_s"] = r["flops"] / r["seconds"]
        if options.peak:
            r["mfu"] = r["flops_per_s"] / 1e12 / options.peak
        results[name] = r
        print(
            f"{name:>12} {r['seconds']:>9.4f} {measure.spread(r):>17} {r['tokens_per_s']:>10.0f} {r['flops_per_s'] / 1e9:>10.1f}"
            + (f" {r['mfu']:>7.1%}" if options.peak else "")
        )
    ratios = {f"{name} / grpo step": (measure.ratio(seconds[name], seconds["grpo step"]), "at most 1.50") for name in ("istar step",)}
    if tunix:
        ratios["tunix / policy"] = (measure.ratio(seconds["tunix"], seconds["policy"]), "at least 0.90")
    print()
    for name, (r, target) in ratios.items():
        print(measure.show_ratio(name, r, target))
    memory = measure.peak_memory_gib()
    if memory is not None:
        print(f"peak memory: {memory:.2f} GiB")
    figures = {"options": vars(options), **facts, "results": results, "peak_memory_gib": memory}
    measure.write_json(options.json, figures | {"ratios": {name: r for name, (r, _) in ratios.items()}})


if __name__ == "__main__":
    launcher(main)
