"""The discriminator: a language model with a scalar head that tells the steps of the environment's expert from those of the policy."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from stepreward import processes
from stepreward.batch import Batch
from stepreward.credit.schedules import Standing
from stepreward.programs import Program
from stepreward.rollout.episode import Episode
from stepreward.training import demonstrating, streams
from stepreward.training.auxiliaries.base import BEFORE_CREDIT, Auxiliary, Lesson
from stepreward.training.auxiliaries.estimator import OUTPUTS, estimate
from stepreward.training.auxiliaries.update import auxiliary_step
from stepreward.training.backbones import Backbone
from stepreward.training.layout import Layout
from stepreward.training.minibatches import row_episodes, take_episodes
from stepreward.training.state import TrainState, create, make_optimizer

LABEL = "from_expert"  # the signal with the labels


class Discriminator(Auxiliary):
    """`discriminator_logit`: f of D = σ(f), the probability that the expert took the step; f is the output at the step's last token.

    In every iteration it learns from the steps that the policy sampled and from as many steps of demonstrations, which are drawn anew,
    and then computes the signal: as in GAIL (arXiv 1606.03476, algorithm 1), the policy's update reads the discriminator that has seen
    the iteration's episodes. The loss is the method's `losses["discriminator"]`.

    Attributes:
      model: its backbone; None before `begin`.
      state: parameters and optimizer; None before `begin`.
      demonstrations: the expert's episodes; empty before `open`. They are not saved in checkpoints: the workdir holds them.
    """

    name = "discriminator"
    order = 3
    provides = frozenset({"discriminator_logit"})
    when = BEFORE_CREDIT
    demonstrated = True

    def __init__(self, c, parts, layout: Layout, key: jax.Array):
        self.c, self.seed, self.method, self.layout, self._parts = c.discriminator, c.seed, parts.method, layout, parts
        self.key = streams.device(key, "discriminator_head")
        self.optimizer = make_optimizer(c.discriminator, c.model.moment_dtype)
        self.model: Backbone | None = None
        self.state: TrainState | None = None
        self.demonstrations: list[Episode] = []

    def open(self) -> None:
        """Converts the demonstrations to episodes.

        Raises:
          ValueError: most of them do not fit the lengths of a rollout, or there are none.
        """
        self.demonstrations = demonstrating.demonstration_episodes(self._parts.demonstrations, self._parts)
        if not self.demonstrations:
            raise ValueError("there are no demonstrations that the discriminator could learn from: raise sft.episodes.")

    @property
    def begun(self) -> bool:
        return self.state is not None

    def begin(self, model: Backbone, params) -> None:
        """Initialises the discriminator as a copy of the policy with a new head, so that D = ½ everywhere."""
        self.model = model
        self.state = create(self.layout.headed(model, params, self.key, self.c.head), self.optimizer)

    def scores(self, placed: Batch, to_rows, policy_params) -> dict:
        """Returns the logit of each step, `[E, S]`."""
        return {"discriminator_logit": processes.to_host(estimate(self.state.params, placed, **self._passes))}

    def learn(self, lesson: Lesson) -> dict:
        """Trains on the steps of this batch and as many of demonstrations; returns metrics."""
        started, outs = time.monotonic(), []
        seed = streams.host(self.seed, "discriminator", lesson.iteration)
        rng = np.random.default_rng(seed)
        batch = self.examples(lesson.batch, lesson.episodes, rng)
        size, rows = self.c.minibatch_episodes, row_episodes(batch)
        capacity = self.layout.row_capacity(size)
        for _ in range(self.c.epochs):
            order = rng.permutation(batch.num_episodes)
            for some in np.array_split(order, -(-len(order) // size)):
                part = take_episodes(batch, some, capacity, size, rows).with_signals(**lesson.coefficients)
                self.state, out = auxiliary_step(self.state, self.layout.place_for_training(part), **self._update(seed, len(outs)))
                outs.append({name: float(value) for name, value in out.items()})
        return _summary(outs) | {"time/discriminator_s": time.monotonic() - started}

    def examples(self, batch: Batch, episodes: Sequence[Episode], rng: np.random.Generator) -> Batch:
        """Packs the counted episodes of a batch and as many steps of demonstrations, with their labels."""
        played = [episode for episode, counts in zip(episodes, batch.episode_mask, strict=True) if counts]
        steps = sum(step.sampled for episode in played for step in episode.steps)
        shown = draw(self.demonstrations, steps, rng)
        together = self.layout.pack([*played, *shown], row_multiple=1).replace(signals={})
        return together.with_signals(**{LABEL: np.arange(together.num_episodes) >= len(played)})

    def saved(self) -> tuple[dict, dict]:
        return {"state": self.state}, {}

    def load(self, saved: dict, facts: dict) -> None:
        self.state = saved["state"]

    @property
    def _passes(self) -> dict:
        return self.layout.passes(self.model)

    def _update(self, seed, update: int) -> dict:
        training = self.layout.training(self.model, seed, update)
        return dict(name=self.name, outputs=OUTPUTS, optimizer=self.optimizer, method=self.method, **self._passes, **training)

    def programs(self, stage: str) -> Iterator[Program]:
        if stage != "train":
            return
        layout, model, size = self.layout, self.model, self.c.minibatch_episodes
        yield Program(
            "discriminator/score",
            estimate,
            (self.state.params, layout.shapes()),
            self._passes,
            times=2,  # before and after it learns
            trips=layout.chunks(),
            kernel_flops=layout.kernel_flops(model),
        )
        rows, signals = layout.row_capacity(size), (LABEL, *self.method.scheduled_values(Standing()))
        passes = (0 if layout.chunks(rows) == 1 else 1) + layout.training_passes(model)
        episodes = 2 * layout.c.rollout.groups * layout.c.rollout.group_size  # if demonstrations are as long as the policy's episodes
        yield Program(
            "discriminator/update",
            auxiliary_step,
            (self.state, layout.shapes(rows, size, signals)),
            self._update([0], 0),
            times=self.c.epochs * -(-episodes // size),
            trips=layout.chunks(rows),
            kernel_flops=layout.kernel_flops(model, rows, passes),
        )


def draw(episodes: Sequence[Episode], steps: int, rng: np.random.Generator) -> list[Episode]:
    """Draws episodes without replacement, and all of them again once none is left, until they have exactly `steps` steps together.

    The last one is shortened to its first steps, if need be.

    Args:
      episodes: at least one of them has a step.
      steps: at least 0.
    """
    found: list[Episode] = []
    while steps > 0:
        for index in rng.permutation(len(episodes)):
            if steps <= 0:
                break
            episode = episodes[index]
            found.append(dataclasses.replace(episode, steps=episode.steps[:steps]))
            steps -= len(found[-1].steps)
    return found


def _summary(outs: list[dict[str, float]]) -> dict[str, float]:
    """The metrics of some updates: accuracies are means over the steps of a side, the others over the updates."""
    of = lambda name: np.array([out[name] for out in outs])
    found = {name: of(name).mean() for name in outs[0] if not name.startswith(("steps_", "accuracy_"))}
    for side in ("expert", "agent"):
        found[f"accuracy_{side}"] = np.average(of(f"accuracy_{side}"), weights=of(f"steps_{side}"))
    return {f"discriminator/{name}": float(value) for name, value in found.items()}
