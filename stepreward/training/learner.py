"""What learns in a run: the policy, and whatever its credit method trains beside it; one iteration's pieces.

`score` adds signals to a batch, `credit` turns them into advantages, `update_policy`, `update_prm` and `refresh_estimator` learn
from them.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from functools import partial

import jax
import numpy as np

from stepreward.credit import credit_quality, rank_correlation, step_permutation
from stepreward import parallel
from stepreward.batch import validate
from stepreward.kernels import adaptive_kl_coefficient
from stepreward.models.heads import decoder_of
from stepreward.programs import Component, Program
from stepreward.rollout.episode import Episode, true_progress
from stepreward.training import backbones, progress, setup
from stepreward.training.critic import VALUE_SIGNALS, Critic
from stepreward.training.layout import Layout
from stepreward.training.policy import normalise_advantage, policy_arguments, policy_step, sft_step, update_policy
from stepreward.training.prm import ProcessRewardModel, needs_initial, score
from stepreward.training.progress import Estimator
from stepreward.training.state import create, make_optimizer


class Learner(Component):
    """The models of a run.

    Attributes:
      model: what the policy's passes need besides its parameters: with adapters, the weights that they sit on.
      policy: its parameters (with a head where the critic shares its backbone) and optimizer.
      initial: the policy that reinforcement learning started from, where a method or loss needs it.
      prm, critic, estimator: None where the credit method has none; without parameters until they begin.
      kl_coef: coefficient of the KL penalty in the reward.
    """

    def __init__(self, c, parts, key: jax.Array):
        self.c, self.method, self.layout, self.parts = c, parts.method, Layout(c, parts), parts
        self.policy_loss = parts.policy_loss
        moments = c.model.moment_dtype
        self.sft_optimizer, self.policy_optimizer = make_optimizer(c.sft, moments), make_optimizer(c.policy, moments)
        self.model, params = backbones.initial_model(c, parts)
        self.policy = create(params, self.sft_optimizer)
        # What the warm start leaves behind: the model to play it with, and its structure.
        self.start_model = self.model
        start = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
        self._start = lambda: start
        self.needs_initial = needs_initial(c, self.method)
        self.initial = None
        keys = [jax.random.fold_in(key, n) for n in (5, 6)]
        self.prm = ProcessRewardModel(c, self.method, self.layout) if self.method.has_prm else None
        self.critic = Critic(c, self.layout, keys[0]) if self.method.has_critic else None
        self.estimator = Estimator(c, self.method, self.layout, keys[1]) if self.method.has_progress else None
        self.kl_coef = c.policy.kl_reward_coef

    @property
    def start(self):
        """Shapes of the parameters that the warm start leaves behind."""
        return self._start()

    @property
    def actor(self):
        """The decoder that plays: parameters, or `(base, adapters)`."""
        return self.model.join(decoder_of(self.policy.params))

    def take(self, params) -> None:
        """A supervised policy that is there already."""
        self.policy = create(self.layout.place_parameters(params), self.sft_optimizer)

    def begin_rl(self) -> None:
        """The supervised policy becomes the start of policy, PRM, critic and reference."""
        params = self.policy.params
        self.policy = None  # its optimizer is not needed any more, and the memory is
        if self.c.lora.rank and self.model.base is None:
            self.model, params = backbones.adapted(self.c, self.model, params)
        if self.needs_initial:
            self.initial = parallel.copy(params)
        if self.prm is not None:
            self.prm.begin(*backbones.prm_model(self.c, self.parts, self._own(self.model), params))
        if self.critic is not None:
            self.critic.begin(self.model if self.c.critic.backbone == "shared" else self._own(self.model), params)
        if self.estimator is not None:
            self.estimator.rest()
        shared = self.critic is not None and self.critic.shared
        self.policy = create(self.critic.headed(params) if shared else params, self.policy_optimizer)

    def reach(self, stage: str | None, read_start) -> None:
        """Brings the models, whatever they hold, into the structure that they have in a stage.

        Args:
          stage: one of `stages.STAGES`, or None behind the last.
          read_start: returns the supervised policy's parameters, which adapters may sit on.
        """
        if self.estimator is not None and stage not in ("sft", "explore"):
            self.estimator.begin(self.model, self.policy.params)
        if stage in ("sft", "explore", "estimator"):
            return
        if self.c.lora.rank and not self.c.lora.sft:
            self.take(read_start())
        self.begin_rl()

    def _own(self, model):
        """The same weights under another model's adapters: shared, or a copy."""
        if model.base is None or self.c.lora.share_base:
            return model
        return dataclasses.replace(model, base=parallel.copy(model.base))

    # --- One iteration ---

    def score(self, batch, metrics: dict):
        """Adds the signals that the method and the policy's loss need, but for those that `credit` draws itself."""
        started, offline = time.monotonic(), self.c.train.mode == "offline"
        wanted = self._scored
        placed, to_rows = None, None
        if wanted or self.prm or self.critic or self.estimator:
            placed, to_rows = self.layout.place_for_scoring(batch.replace(signals={}))
        scoring = self.layout.scoring(self.model)
        signals = {name: to_rows(score(params, placed, **scoring)[0]) for name, params in wanted.items()}
        if self.prm is not None:
            signals["log_prob_prm"] = to_rows(self.prm.score(placed))
        if self.critic is not None:
            signals["value"] = to_rows(self.critic.values(self.policy.params, placed))
        if self.estimator is not None:
            signals["progress"] = self.estimator.outputs(placed)
        batch = batch.with_signals(**signals)
        if offline and setup.recomputes_old_log_prob(self.c):
            batch = batch.replace(log_prob_old=signals["log_prob_policy"])
        metrics["time/scoring_s"] = metrics.get("time/scoring_s", 0.0) + time.monotonic() - started
        return batch

    @property
    def _scored(self) -> dict:
        """The decoders, by signal, whose log-probabilities are computed besides the PRM's."""
        wanted = {} if self.initial is None else {"log_prob_initial": self.initial}
        if self.c.train.mode == "offline":
            wanted["log_prob_policy"] = decoder_of(self.policy.params)
        return wanted

    def credit(self, batch, metrics: dict, seed):
        """Returns the function that credits a batch and logs what it saw."""
        scale, found = (np.float32(1), {}) if self.prm is None else self.prm.before(batch)
        metrics |= found
        rng = np.random.default_rng(seed)

        def credit(batch, episodes):
            started = time.monotonic()
            extra = {"alpha_scale": scale, "kl_coef": np.float32(self.kl_coef)}
            extra = {k: v for k, v in extra.items() if k in self.method.requires}
            if "step_permutation" in self.method.requires:
                extra["step_permutation"] = step_permutation(rng, batch.step_mask)
            credited = jax.device_get(_credit(self.method, batch.with_signals(**extra)))
            metrics.update({f"credit/{k}": float(v) for k, v in credited.metrics.items()})
            if "prm_kl_k3" in credited.metrics:
                metrics["prm/kl_policy"] = float(credited.metrics["prm_kl_k3"])
            metrics.update(self._quality(credited, batch, episodes))
            metrics["time/scoring_s"] += time.monotonic() - started
            return credited

        return credit

    def _quality(self, credited, batch, episodes) -> dict:
        """Credit against true progress, where the environment knows it."""
        truth = true_progress(episodes, self.c.rollout.max_steps)
        if not np.isfinite(truth).any():
            return {}
        found = {"advantage_rank_correlation": rank_correlation(credited.step_advantage, truth, batch.step_mask)}
        if self.prm is not None or self.critic is not None or self.estimator is not None:
            found |= credit_quality(credited.step_reward, truth, batch.step_mask)
        return {f"credit/{k}": v for k, v in found.items() if math.isfinite(v)}

    def update_prm(self, batch, metrics: dict, seed) -> None:
        """Trains the PRM, where there is one."""
        if self.prm is not None:
            self.prm.update(batch, metrics, seed, decoder_of(self.policy.params))

    def update_policy(self, batch, credited, metrics: dict, seed) -> None:
        """Trains policy and critic; the coefficient of the KL penalty follows the KL that was seen."""
        c = self.c
        signals = {"advantage": normalise_advantage(np.asarray(credited.advantage), batch, c.policy.advantage_norm)}
        if c.policy.kl_coef:
            signals["log_prob_reference"] = batch.signals["log_prob_initial"]
        if self.critic is not None:
            signals |= {"value": batch.signals["value"], "returns": np.asarray(credited.returns)}
            signals["value_mask"] = np.asarray(_value_mask(self.method, batch))
            self.critic.update(batch.with_signals(**signals), metrics, [*seed, 1])
        self.policy = update_policy(
            self.policy, batch.replace(signals=signals), c.policy, self.layout, metrics, seed, **self._policy_update()
        )
        if c.train.mode == "offline":
            for name in ("policy/sampler_gap", "policy/sampler_gap_nats"):
                metrics.pop(name)  # the policy that sampled is another one
        if "kl_initial" in credited.metrics and c.policy.kl_reward_target:
            self.kl_coef = adaptive_kl_coefficient(
                self.kl_coef, float(credited.metrics["kl_initial"]), target=c.policy.kl_reward_target,
                horizon=c.policy.kl_reward_horizon, episodes=int(batch.episode_mask.sum()),
            )  # fmt: skip

    def _policy_update(self) -> dict:
        shared = self.critic is not None and self.critic.shared
        return dict(model=self.model, optimizer=self.policy_optimizer, loss=self.policy_loss,
                    value_loss=self.critic.loss if shared else None)  # fmt: skip

    def refresh_estimator(self, batch, episodes, metrics: dict, iteration: int) -> None:
        """Every few iterations, goes on training the estimator on what they brought."""
        every = self.c.estimator.refresh_every
        if self.estimator is None or not every or self.c.train.mode == "offline":
            return
        self.estimator.remember(progress.with_labels(batch, episodes, self.method))
        if iteration % every == 0:
            self.estimator.refresh(metrics, [self.c.seed, 10, iteration])

    # --- What is compiled, and what lies on the devices ---

    @property
    def _components(self) -> dict[str, Component]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Component)}

    def held(self) -> dict:
        found = super().held()
        for name, component in self._components.items():
            found |= {f"{name}.{inner}": tree for inner, tree in component.held().items()}
        return found

    def programs(self, stage: str) -> Iterator[Program]:
        layout, model, c = self.layout, self.model, self.c
        passes = layout.training_passes(model)
        if stage == "sft" and c.sft.updates:
            rows = layout.demonstrated_capacity
            yield Program(
                "policy/sft", sft_step, (self.policy, layout.shapes(rows, 1)), self.sft_arguments(0), trips=layout.chunks(rows),
                kernel_flops=layout.kernel_flops(model, rows, passes),
            )  # fmt: skip
        if stage == "train":
            for name, params in self._scored.items():
                yield Program(
                    f"policy/{name}", score, (params, layout.shapes()), layout.scoring(model), trips=layout.chunks(),
                    kernel_flops=layout.kernel_flops(model),
                )  # fmt: skip
            rows, update = layout.minibatch_capacity(c.policy.minibatch_rows), self._policy_update()
            signals = ["advantage"] + ["log_prob_reference"] * bool(c.policy.kl_coef) + [*VALUE_SIGNALS] * (self.critic is not None)
            batch = layout.shapes(rows, signals=signals)
            arrays, arguments = (self.policy, batch, batch.signals["advantage"]), policy_arguments(layout, seed=[0], update=0, **update)
            yield Program(
                "policy/update", policy_step, arrays, arguments,
                times=c.policy.epochs * -(-layout.capacity // rows), trips=layout.chunks(rows),
                kernel_flops=layout.kernel_flops(model, rows, passes),
            )  # fmt: skip
        for component in self._components.values():
            shared = component is self.critic and stage == "train"
            yield from component.programs(stage, self.policy.params) if shared else component.programs(stage)

    def sft_arguments(self, update: int) -> dict:
        """What the supervised update takes besides state and rows."""
        return dict(optimizer=self.sft_optimizer, **self.layout.passes(self.model),
                    **self.layout.training(self.model, [self.c.seed, 11], update))  # fmt: skip

    # --- Checkpoints ---

    def tree(self) -> dict:
        """Everything that the next update depends on."""
        tree = {"policy": self.policy}
        if self.prm is not None and self.prm.state is not None:
            tree["prm"] = self.prm.state
            tree |= {"replay": self.prm.replay} if self.prm.replay else {}
        if self.initial is not None:
            tree["initial"] = self.initial
        if self.critic is not None and self.critic.state is not None:
            tree["critic"] = self.critic.state
        if self.estimator is not None and self.estimator.best is not None:
            tree["estimator_best"] = self.estimator.best
            tree |= {} if self.estimator.state is None else {"estimator": self.estimator.state}
            tree |= {"recent": self.estimator.replay} if self.estimator.replay else {}
        return tree

    def facts(self) -> dict:
        """The plain values that belong to `tree`."""
        estimator = self.estimator
        return {
            "replayed": len(self.prm.replay) if self.prm else 0,
            "recent": len(estimator.replay) if estimator else 0,
            "estimator_best_loss": estimator.best_loss if estimator and math.isfinite(estimator.best_loss) else None,
            "estimator_stale": estimator.stale if estimator else 0,
            "kl_coef": self.kl_coef,
        }

    def template(self, facts: dict) -> dict:
        """A tree of the structure that `tree` had when `facts` were saved."""
        if facts["replayed"]:
            signals = () if self.initial is None else ("log_prob_initial",)
            self.prm.replay = [self._empty_batch(signals) for _ in range(facts["replayed"])]
        if facts["recent"]:
            self.estimator.replay = [self._empty_batch(self.method.label_signals) for _ in range(facts["recent"])]
        return self.tree()

    def load(self, tree: dict, facts: dict) -> None:
        """Takes over a saved tree."""
        self.policy, self.initial, self.kl_coef = tree["policy"], tree.get("initial"), facts["kl_coef"]
        if "prm" in tree:
            self.prm.state, self.prm.replay = tree["prm"], tree.get("replay", [])
        if self.c.train.check_batches:
            for batch in [*tree.get("replay", []), *tree.get("recent", [])]:
                validate(batch)
        if "critic" in tree:
            self.critic.state = tree["critic"]
        if "estimator_best" in tree:
            self.estimator.state, self.estimator.best = tree.get("estimator"), tree["estimator_best"]
            self.estimator.replay, self.estimator.stale = tree.get("recent", []), facts["estimator_stale"]
            self.estimator.best_loss = math.inf if facts["estimator_best_loss"] is None else facts["estimator_best_loss"]

    def _empty_batch(self, signals):
        """A batch of the shapes that a rollout packs into, as the template of a remembered one."""
        c = self.c.rollout
        tasks = setup.training_tasks(self.c.seed, "train", 0, c.groups, c.group_size)
        batch = self.layout.pack([Episode(task) for task in tasks])
        empty = self.layout.shapes(len(batch.tokens), batch.num_episodes, signals).signals
        return batch.with_signals(**{name: np.zeros(x.shape, x.dtype) for name, x in empty.items()})


@partial(jax.jit, static_argnums=0)
def _credit(method, batch):
    return method.credit(batch)


@partial(jax.jit, static_argnums=0)
def _value_mask(method, batch):
    return method.value_mask(batch)
