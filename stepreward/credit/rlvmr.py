"""RLVMR: rules reward steps by the kind of thought that their answer is tagged with, and steps of one kind are compared."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from stepreward.batch import Batch
from stepreward.credit.base import Credit, Method, check_choice, check_not_negative, check_share, per_step, register, step_mask, to_tokens
from stepreward.credit.host import of_steps, step_array
from stepreward.credit.outcome import EPISODE_ADVANTAGES, episode_advantage
from stepreward.credit.pieces import common_metrics
from stepreward.envs.parsing import TAGS, tag_of
from stepreward.envs.protocol import EVENTS
from stepreward.kernels import group_normalise, masked_mean
from stepreward.kernels.inputs import select

Array = jax.Array


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
      planning, explore, reflection, monitor: the rewards. Their sizes are not verified: no public code was found. Each is compared within
        its tag only, so that beside the penalty the sizes do not matter. No rule for `monitor` is known, so its reward is 0 by default, and
        its A_tag is 0 unless an answer has no action.
      format_penalty: ≥ 0.
      episode_advantage: A_traj: "grpo" is the paper's; or another outcome method.
      scope: the steps with which A_tag compares: of the "group", or of the whole "batch". It is not verified which one the paper means.
      eps: added to every standard deviation.

    Raises:
      ValueError: at construction, on a value out of range.

    Source: RLVMR (arXiv 2507.22844).
    """

    name: ClassVar[str] = "rlvmr"
    unscheduled: ClassVar[frozenset[str]] = frozenset(
        {"planning", "explore", "reflection", "monitor", "format_penalty"}
    )  # the host reads them
    requires: ClassVar[frozenset[str]] = frozenset({"tag_id", "rule_reward"})
    capabilities: ClassVar[frozenset[str]] = frozenset({EVENTS})
    needs_group: ClassVar[bool] = True

    alpha: float = 0.5
    planning: float = 1.0
    explore: float = 1.0
    reflection: float = 1.0
    monitor: float = 0.0
    format_penalty: float = 0.1
    episode_advantage: str = "grpo"
    scope: str = "group"
    eps: float = 1e-6

    def __post_init__(self):
        check_choice(self, "episode_advantage", EPISODE_ADVANTAGES)
        check_choice(self, "scope", ("group", "batch"))
        check_share(self, "alpha")
        check_not_negative(self, "format_penalty", "eps")

    def host_signals(self, batch: Batch, episodes, rng: np.random.Generator) -> dict[str, np.ndarray]:
        tags = of_steps(episodes, lambda step: tag_of(step.output))
        ids = [[-1 if tag is None else TAGS.index(tag) for tag in of_episode] for of_episode in tags]
        # An episode that failed has no tags, so its steps are left out here too.
        rewards = [
            [self.rule(step, tag, episode.success) for step, tag in zip(episode.steps, of_episode)]
            for episode, of_episode in zip(episodes, tags)
        ]
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
        options = dict(num_groups=batch.num_episodes * len(TAGS), scale="std", eps=self.eps)
        compared_ExS = group_normalise(reward_ExS, ids_ExS, tagged_ExS, **options)
        tag_advantage_ExS = jnp.where(tagged_ExS, compared_ExS, jnp.where(mask_ExS, -self.format_penalty, 0.0))

        outcome_E = episode_advantage(batch, self.episode_advantage, eps=self.eps)
        advantage_ExS = self.alpha * per_step(outcome_E, batch) + (1.0 - self.alpha) * tag_advantage_ExS
        advantage_RxL = to_tokens(advantage_ExS, batch)
        metrics = common_metrics(advantage_RxL, reward_ExS, batch)
        metrics |= {f"tag_{name}": masked_mean(tag_ExS == tag, mask_ExS) for tag, name in enumerate(TAGS)}
        metrics["tag_none"] = masked_mean(tag_ExS < 0, mask_ExS)
        return Credit(advantage_RxL, reward_ExS, advantage_ExS, None, metrics)
