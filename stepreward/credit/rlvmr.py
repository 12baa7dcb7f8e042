"""RLVMR: rules reward steps by the kind of thought that their answer is tagged with, and steps of one kind are compared."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from stepreward.batch import Batch
from stepreward.credit.base import Credit, Method, check_at_least, check_choice, check_share, per_step, register, step_mask, to_tokens
from stepreward.credit.host import of_steps, step_array
from stepreward.credit.outcome import EPISODE_ADVANTAGES, episode_advantage
from stepreward.credit.pieces import common_metrics, compare_episodes
from stepreward.envs.parsing import TAGS, tag_of
from stepreward.envs.protocol import EVENTS
from stepreward.kernels import group_normalise, masked_mean
from stepreward.kernels.inputs import select
from stepreward.kernels.masked import SINGLETON

Array = jax.Array

CHOICES = {
    "combine": ("share", "sum"),
    "scale": ("std", "none"),
    "episode_units": ("episodes", "steps"),
    "singleton": SINGLETON,
    "rules": ("paper", "released"),
    "scope": ("group", "batch"),
}


@register("rlvmr")
@dataclasses.dataclass(frozen=True)
class RLVMR(Method):
    """Verifiable meta-reasoning rewards: A_t = α·A_traj + (1 − α)·A_tag.

    A_traj = z(R) over the episodes of the group; A_tag = (r_t − mean) / (std + eps), ddof 1, over the steps of the group with the tag of
    step t. The rules for r_t:

      planning    `planning` if the episode succeeds
      explore     `explore` if the step reached a state that is new in its episode (event "new_state")
      reflection  `reflection` if the action took effect right after one that failed (event "recovered")
      monitor     `monitor` if the action did not fail (no event "error")
      any tag     −`format_penalty` instead, if the answer has no action

    A step without a tag, or with tags of two kinds, has nothing to be compared with: its A_tag is −`format_penalty`. The prompt must ask
    for the tags (`envs.parsing.TAGS`). Signals: `tag_id` int32 `[E, S]`, the place of the step's tag in `TAGS` or −1, and `rule_reward`
    float32 `[E, S]` (`host_signals`).

    Attributes:
      alpha: α in [0, 1].
      planning, explore, reflection, monitor: the rewards. Each is compared within its tag only, so that beside the penalty their sizes do
        not matter with a std. No rule for `monitor` is known, so its reward is 0 by default, and its A_tag is 0 unless an answer has no
        action.
      format_penalty: ≥ 0.
      episode_advantage: A_traj: "grpo" is the paper's; or another outcome method.
      combine: "share": the formula above; "sum": A_t = A_traj + `weight`·A_tag, as the release has it.
      weight: with combine="sum", ≥ 0.
      scale: of A_tag: divide by the "std", or by "none".
      episode_units: what mean and std of A_traj are taken over: "episodes"; or "steps", where an episode counts once a step (the release).
      singleton: what the only step with a tag, or the only unit of a group, gets: "zero", or "raw", its own value (the release).
      rules: "paper", as above; or "released": see `released_rule`.
      scope: the steps with which A_tag compares: of the "group", as in the release, or of the whole "batch".
      eps: added to every standard deviation.

    Raises:
      ValueError: at construction, on a value out of range.

    Source: RLVMR (arXiv 2507.22844); the release is zzjweb/digitalhuman, commit 5d02be6, `RLVMR/code/rlvmr/core_rlvmr.py`.
    """

    name: ClassVar[str] = "rlvmr"
    # The host reads them.
    unscheduled: ClassVar[frozenset[str]] = frozenset({*TAGS, "format_penalty"})
    requires: ClassVar[frozenset[str]] = frozenset({"tag_id", "rule_reward"})
    capabilities: ClassVar[frozenset[str]] = frozenset({EVENTS})
    variants: ClassVar = {
        "paper": {},
        "released": {"combine": "sum", "scale": "none", "episode_units": "steps", "singleton": "raw", "rules": "released"},
    }

    alpha: float = 0.5
    planning: float = 1.0
    explore: float = 1.0
    reflection: float = 1.0
    monitor: float = 0.0
    format_penalty: float = 0.1
    episode_advantage: str = "grpo"
    combine: str = "share"
    weight: float = 1.0
    scale: str = "std"
    episode_units: str = "episodes"
    singleton: str = "zero"
    rules: str = "paper"
    scope: str = "group"
    eps: float = 1e-6

    def __post_init__(self):
        check_choice(self, "episode_advantage", EPISODE_ADVANTAGES)
        for field, choices in CHOICES.items():
            check_choice(self, field, choices)
        check_share(self, "alpha")
        check_at_least(self, 0, "format_penalty", "weight", "eps")
        if self.episode_units == "steps" and self.episode_advantage != "grpo":
            raise ValueError(f"episode_units='steps' of '{self.name}' counts the steps of GRPO: set episode_advantage='grpo'")

    @property
    def needs_group(self) -> bool:
        """True unless the only episode of a group keeps its own outcome."""
        return self.singleton == "zero"

    def host_signals(self, batch: Batch, episodes, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if self.rules == "released":
            found = [
                [released_rule(episode, t) for t in range(len(episode.steps))] if episode.failure is None else [] for episode in episodes
            ]
            tags = [[tag for tag, _ in of_episode] for of_episode in found]
            rewards = [[getattr(self, tag) if kept else 0.0 for tag, kept in of_episode] for of_episode in found]
        else:
            tags = of_steps(episodes, lambda step: tag_of(step.output))
            # An episode that failed has no tags, so its steps are left out here too.
            rewards = [
                [self.rule(step, tag, episode.success) for step, tag in zip(episode.steps, of_episode)]
                for episode, of_episode in zip(episodes, tags)
            ]
        ids = [[-1 if tag is None else TAGS.index(tag) for tag in of_episode] for of_episode in tags]
        return {"tag_id": step_array(ids, batch, dtype=np.int32, fill=-1), "rule_reward": step_array(rewards, batch)}

    def rule(self, step: Any, tag: str | None, success: bool) -> float:
        """The reward of a step by the rules; `step` has `action` and `events` (`rollout.episode.Step`)."""
        if tag is None or step.action is None:
            return -self.format_penalty
        kept = {
            "planning": success,
            "explore": "new_state" in step.events,
            "reflection": "recovered" in step.events,
            "monitor": "error" not in step.events,
        }
        return getattr(self, tag) if kept[tag] else 0.0

    def assign(self, batch: Batch) -> Credit:
        mask_ExS, tag_ExS = step_mask(batch), batch.signals["tag_id"]
        reward_ExS = select(mask_ExS, batch.signals["rule_reward"])
        tagged_ExS = mask_ExS & (tag_ExS >= 0)
        group_E = batch.group_id if self.scope == "group" else jnp.zeros_like(batch.group_id)
        ids_ExS = group_E[:, None] * len(TAGS) + tag_ExS
        options = dict(scale=self.scale, eps=self.eps, singleton=self.singleton)
        compared_ExS = group_normalise(reward_ExS, ids_ExS, tagged_ExS, num_groups=batch.num_episodes * len(TAGS), **options)
        untagged = -self.format_penalty if self.rules == "paper" else 0.0
        tag_advantage_ExS = jnp.where(tagged_ExS, compared_ExS, jnp.where(mask_ExS, untagged, 0.0))
        episode_ExS = self._episode_advantage(batch)
        if self.combine == "sum":
            advantage_ExS = episode_ExS + self.weight * tag_advantage_ExS
        else:
            advantage_ExS = self.alpha * episode_ExS + (1.0 - self.alpha) * tag_advantage_ExS
        advantage_RxL = to_tokens(advantage_ExS, batch)
        metrics = common_metrics(advantage_RxL, reward_ExS, batch)
        metrics |= {f"tag_{name}": masked_mean(tag_ExS == tag, mask_ExS) for tag, name in enumerate(TAGS)}
        metrics["tag_none"] = masked_mean(tag_ExS < 0, mask_ExS)
        return Credit(advantage_RxL, reward_ExS, advantage_ExS, None, metrics)

    def _episode_advantage(self, batch: Batch) -> Array:
        """`[E, S]`: A_traj of the episode at each of its counted steps."""
        if self.episode_advantage == "grpo":
            return compare_episodes(batch, scale=self.scale, counted=self.episode_units, eps=self.eps, singleton=self.singleton)
        return per_step(episode_advantage(batch, self.episode_advantage, eps=self.eps, singleton=self.singleton), batch)


def released_rule(episode: Any, t: int) -> tuple[str | None, bool]:
    """The tag of step `t` of an episode by the release's rules, and whether the step gets the reward of its tag.

    The first of planning, explore and reflection that the answer holds is its tag. An answer without an action, and one with `monitor` alone, has
    none. Planning is rewarded in a success; explore if no earlier answer of the episode had the same action; reflection if the action before
    it did not take effect and was another one, or at the first step.
    """
    step, before = episode.steps[t], episode.steps[:t]
    if step.action is None:
        return None, False
    tag = next((tag for tag in ("planning", "explore", "reflection") if f"<{tag}>" in step.output), None)
    if tag == "planning":
        return tag, bool(episode.success)
    if tag == "explore":
        return tag, all(other.action != step.action for other in before)
    if tag == "reflection":
        return tag, not before or not (before[-1].executed or before[-1].action == step.action)
    return None, False
