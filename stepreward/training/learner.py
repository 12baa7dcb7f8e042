"""The models that learn in a run (the policy and its auxiliaries), and the parts of one iteration.

`prepare` and `score` add signals to a batch, `credit` turns them into advantages, and `learn` and `update_policy` train on them.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator
from functools import partial

import jax
import numpy as np

from stepreward import parallel
from stepreward.batch import Batch, validate
from stepreward.credit import credit_quality, exact_quality, rank_correlation
from stepreward.credit.schedules import Standing
from stepreward.kernels import adaptive_kl_coefficient
from stepreward.models.heads import decoder_of
from stepreward.programs import Component, Program
from stepreward.rollout.episode import Episode, true_progress
from stepreward.training import backbones, preferring, setup, streams
from stepreward.training.ahead import View, importance
from stepreward.training.auxiliaries import AUXILIARIES, Auxiliary, Lesson
from stepreward.training.auxiliaries.update import LogProbs, auxiliary_step
from stepreward.training.layout import Layout
from stepreward.training.policy import normalise_advantage, policy_arguments, policy_step, sft_step, update_policy
from stepreward.training.scoring import needs_initial, score
from stepreward.training.state import create, make_optimizer
from stepreward.training.tasks import training_tasks


class Learner(Component):
    """The models of a run.

    Attributes:
      model: the policy's graph, config and, with adapters, the frozen base weights.
      policy: the policy's parameters (including a head if the critic shares its backbone) and optimizer.
      initial: the parameters that preference or reinforcement learning started from; None if no method or loss needs them.
      auxiliaries: the models that learn beside the policy, by name; they have no parameters until they begin.
      kl_coef: coefficient of the KL penalty in the reward.
      successes: the training success of the last iterations, the oldest first; as many as the schedules of coefficients read.
      behind: what the next iteration's rollout sees if it has begun before this iteration's updates; None if it begins after them.
    """

    def __init__(self, c, parts, key: jax.Array):
        self.c, self.method, self.layout, self.parts = c, parts.method, Layout(c, parts), parts
        self.policy_loss = parts.policy_loss
        moments = c.model.moment_dtype
        self.sft_optimizer, self.policy_optimizer = make_optimizer(c.sft, moments), make_optimizer(c.policy, moments)
        self.model, params = backbones.initial_model(c, parts)
        self.policy = create(params, self.sft_optimizer)
        # The model of the warm start's result, and the shapes of its parameters.
        self.start_model = self.model
        start = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
        self._start = lambda: start
        self.needs_initial = needs_initial(c, self.method)
        self.initial = None
        self.auxiliaries: dict[str, Auxiliary] = {
            kind.name: kind(c, parts, self.layout, key) for kind in AUXILIARIES if kind.wanted(self.method) or kind.asked(c)
        }
        self.kl_coef = c.policy.kl_reward_coef
        self.successes: list[float] = []
        self.behind: View | None = None
        self._window = max((schedule.window for schedule in self.method.coefficients.values()), default=0)
        self.reinforcing = False  # whether `begin_rl` has been called

    @property
    def start(self):
        """Shapes of the parameters that result from the warm start."""
        return self._start()

    @property
    def actor(self):
        """The decoder that plays: parameters, or `(base, adapters)`."""
        return self.model.join(decoder_of(self.policy.params))

    def take(self, params) -> None:
        """Replaces the policy by a supervised one that is already trained."""
        self.policy = create(self.layout.place_parameters(params), self.sft_optimizer)

    def begin_rl(self) -> None:
        """Initialises policy, auxiliaries and reference from the supervised policy."""
        params, self.reinforcing = self._improvable(), True
        self.initial = parallel.copy(params) if self.needs_initial else None
        for auxiliary in self.auxiliaries.values():
            if auxiliary.stage == "train":
                auxiliary.begin(self._own(self.model) if auxiliary.trains and not auxiliary.shared else self.model, params)
            else:
                auxiliary.begin_training(params)
        joined = params
        for auxiliary in self.auxiliaries.values():
            joined = auxiliary.joined(joined)
        self.policy = create(joined, self.policy_optimizer)

    def _improvable(self):
        """Returns the policy's parameters in the form that is trained from now on, adapters if the config says so; drops its optimizer."""
        params, self.policy = self.policy.params, None  # frees the memory of the optimizer
        if self.c.lora.rank and self.model.base is None:
            self.model, params = backbones.adapted(self.c, self.model, params)
        return params

    def _begin_preference(self) -> None:
        """Prepares the policy for its first round on pairs, and keeps it as the reference."""
        params = self._improvable()
        self.initial = parallel.copy(params)
        self.policy = create(params, preferring.optimizer(self.c, self.parts.preference, 0))

    def begin_round(self, number: int) -> None:
        """Begins a later round of preference learning: a new optimizer, and a new reference if the config says so.

        Args:
          number: the round, at least 1; the first one begins with the stage.
        """
        if self.c.preference.reference == "round":
            self.initial = parallel.copy(self.policy.params)
        self.policy = create(self.policy.params, preferring.optimizer(self.c, self.parts.preference, number))

    def open(self) -> None:
        """Reads what auxiliaries need from disk, so that a wrong path is found before anything is trained."""
        for auxiliary in self.auxiliaries.values():
            auxiliary.open()

    def begin_stage(self, stage: str) -> None:
        """Begins what a stage before reinforcement learning trains: the policy on pairs, and the auxiliaries whose first stage this is."""
        if stage == preferring.NAME and self.parts.preference is not None:
            self._begin_preference()
        for auxiliary in self.auxiliaries.values():
            if auxiliary.stage == stage != "train":
                auxiliary.begin(self.model, self.policy.params)

    def reach(self, stages: Iterable[str], read_start) -> None:
        """Gives the models the tree structure that they have in the last of some stages; their values are arbitrary.

        Args:
          stages: the stages that have begun, in order.
          read_start: returns the supervised policy's parameters, which may be the frozen base of adapters.
        """
        prefers = self.parts.preference is not None
        for stage in stages:
            if (stage == "train" or (stage == preferring.NAME and prefers)) and self.c.lora.rank and self.model.base is None:
                self.take(read_start())
            self.begin_stage(stage)
        if "train" in stages and preferring.reinforces(self.c):
            self.begin_rl()

    def _own(self, model):
        """The backbone for an auxiliary with its own adapters: it shares the base weights, or copies them if the config says so."""
        if model.base is None or self.c.lora.share_base:
            return model
        return dataclasses.replace(model, base=parallel.copy(model.base))

    # --- One iteration ---

    def prepare(self, batch, episodes) -> dict:
        """Shows auxiliaries the episodes that a batch was packed from, before `score`; returns metrics."""
        metrics = {}
        for auxiliary in self.auxiliaries.values():
            metrics |= auxiliary.prepare(batch, episodes)
        return metrics

    def unscored(self, batch) -> np.ndarray:
        """Returns the episodes of a prepared batch for which an auxiliary has no signals, bool `[E]`."""
        found = np.zeros(batch.num_episodes, bool)
        for auxiliary in self.auxiliaries.values():
            if auxiliary.unscored is not None:
                found |= auxiliary.unscored
        return found

    def score(self, batch, metrics: dict):
        """Adds the models' signals that the method and the policy's loss need; `credit` adds those of the host."""
        started = time.monotonic()
        wanted, signals = {name: params for name, params in self._scored.items() if name not in batch.signals}, {}
        if wanted or self.auxiliaries:
            placed, to_rows = self.layout.place_for_scoring(batch.replace(signals={}))
            scoring = self.layout.scoring(self.model)
            signals = {name: to_rows(score(params, placed, **scoring)[0]) for name, params in wanted.items()}
            for auxiliary in self.auxiliaries.values():
                signals |= auxiliary.scores(placed, to_rows, self.policy.params)
        batch = batch.with_signals(**signals)
        if "log_prob_policy" in signals:
            if self.c.rollout.ahead:
                batch = batch.with_signals(log_prob_behaviour=batch.log_prob_old)
            if self.c.rollout.ahead or setup.recomputes_old_log_prob(self.c):
                batch = batch.replace(log_prob_old=signals["log_prob_policy"])
        metrics["time/scoring_s"] = metrics.get("time/scoring_s", 0.0) + time.monotonic() - started
        return batch

    @property
    def _scored(self) -> dict:
        """Parameters of the decoders whose log-probabilities are computed, by signal; auxiliaries are not among them."""
        wanted = {} if self.initial is None else {"log_prob_initial": self.initial}
        if self.c.train.mode == "offline" or self.c.rollout.ahead:
            wanted["log_prob_policy"] = decoder_of(self.policy.params)
        return wanted

    def look(self, batch, metrics: dict, iteration: int = 0) -> tuple[dict, dict]:
        """Computes the scalars of a batch before the auxiliaries learn from it; adds their metrics.

        Returns:
          The scalar signals that the method requires, and the values of its scheduled coefficients, by name of the signal.
        """
        signals, standing = {"kl_coef": np.float32(self.kl_coef)}, self.standing(iteration)
        batch = batch.with_signals(**self.method.scheduled_values(standing))
        for auxiliary in self.auxiliaries.values():
            found, seen = auxiliary.look(batch)
            standing = standing._replace(pair_accuracy=found.pop("pair_accuracy", standing.pair_accuracy))
            signals |= found
            metrics |= seen
        return {name: x for name, x in signals.items() if name in self.method.requires}, self.method.scheduled_values(standing)

    def standing(self, iteration: int, successes: tuple[float, ...] | None = None) -> Standing:
        """Returns what schedules read in an iteration, before the auxiliaries have seen its batch."""
        return Standing(iteration, tuple(self.successes) if successes is None else successes)

    def view(self, env_steps: int, staleness: int = 0) -> View:
        """What a rollout sees that begins now. One that is played while the policy learns keeps a copy of it."""
        params = decoder_of(self.policy.params)
        return View(parallel.copy(params) if staleness else params, env_steps, tuple(self.successes), staleness)

    def note_success(self, success: float) -> None:
        """Keeps the training success of a finished iteration for the schedules of coefficients."""
        self.successes = [*self.successes, success][-self._window :] if self._window else []

    def learn(self, when: str, lesson: Lesson, metrics: dict) -> bool:
        """Trains the auxiliaries that learn at the time `when`; returns whether there are any."""
        those = [auxiliary for auxiliary in self.auxiliaries.values() if auxiliary.when == when]
        for auxiliary in those:
            metrics |= auxiliary.learn(lesson)
        return bool(those)

    def credit(self, batch, episodes, signals: dict, metrics: dict, seed):
        """Computes the credit of a batch; adds the method's metrics, and the credit's agreement with true progress.

        Args:
          signals: scalar signals, both results of `look`.
          seed: entropy of the method's random draws.
        """
        started = time.monotonic()
        extra = self.method.host_signals(batch, episodes, np.random.default_rng(seed))
        credited = jax.device_get(_credit(self.method, batch.with_signals(**signals, **extra)))
        metrics |= {f"credit/{name}": float(value) for name, value in credited.metrics.items()}
        for auxiliary in self.auxiliaries.values():
            metrics |= auxiliary.credited(credited)
        metrics |= self._quality(credited, batch, episodes)
        metrics["time/scoring_s"] += time.monotonic() - started
        return credited

    def _quality(self, credited, batch, episodes) -> dict:
        """Metrics that compare credit with exact advantages and with true progress, as far as they are known."""
        found = {} if "exact_advantage" not in batch.signals else exact_quality(credited, batch)
        return {f"credit/{k}": v for k, v in (found | self._progress_quality(credited, batch, episodes)).items() if math.isfinite(v)}

    def _progress_quality(self, credited, batch, episodes) -> dict:
        truth = true_progress(episodes, self.c.rollout.max_steps)
        if not np.isfinite(truth).any():
            return {}
        found = {"advantage_rank_correlation": rank_correlation(credited.step_advantage, truth, batch.step_mask)}
        if self.auxiliaries:
            found |= credit_quality(credited.step_reward, truth, batch.step_mask)
        return found

    def update_policy(self, batch, credited, metrics: dict, seed) -> None:
        """Trains the policy, and adapts the coefficient of the KL penalty in the reward to the measured KL."""
        c = self.c
        weight = credited.token_weight
        signals = {"advantage": normalise_advantage(np.asarray(credited.advantage), batch, c.policy.advantage_norm, weight)}
        if weight is not None:
            signals["token_weight"] = weight
        if c.rollout.ahead:
            then = np.asarray(batch.signals["log_prob_behaviour"])
            trust, found = importance(np.asarray(batch.log_prob_old), then, np.asarray(batch.action_mask), c.policy.importance_cap)
            signals["advantage"] = signals["advantage"] * trust
            metrics |= found
        if c.policy.kl_coef:
            signals["log_prob_reference"] = batch.signals["log_prob_initial"]
        for auxiliary in self.auxiliaries.values():
            signals |= auxiliary.policy_signals(batch, credited)
        self.policy = update_policy(
            self.policy, batch.replace(signals=signals), c.policy, self.layout, metrics, seed, **self._policy_update()
        )
        if c.train.mode == "offline":
            for name in ("policy/sampler_gap", "policy/sampler_gap_nats"):
                metrics.pop(name)  # another policy sampled these episodes
        if "kl_initial" in credited.metrics and c.policy.kl_reward_target:
            self.kl_coef = adaptive_kl_coefficient(
                self.kl_coef,
                float(credited.metrics["kl_initial"]),
                target=c.policy.kl_reward_target,
                horizon=c.policy.kl_reward_horizon,
                episodes=int(batch.episode_mask.sum()),
            )

    def _policy_update(self) -> dict:
        return {"model": self.model, "optimizer": self.policy_optimizer, "loss": self.policy_loss, "value_loss": self._value_loss}

    @property
    def _value_loss(self):
        """The loss of the auxiliary that shares the policy's backbone; None if there is none."""
        return next((auxiliary.value_loss for auxiliary in self.auxiliaries.values() if auxiliary.shared), None)

    # --- Compiled programs, and arrays on the devices ---

    @property
    def components(self) -> dict[str, Component]:
        """All parts of the run that have their own programs or parameters."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Component)} | self.auxiliaries

    def held(self) -> dict:
        found = super().held()
        for name, component in self.components.items():
            found |= {f"{name}.{inner}": tree for inner, tree in component.held().items()}
        return found

    def programs(self, stage: str) -> Iterator[Program]:
        layout, model, c = self.layout, self.model, self.c
        passes = layout.training_passes(model)
        if stage == "sft" and c.sft.updates:
            rows = layout.demonstrated_capacity
            yield Program(
                "policy/sft",
                sft_step,
                (self.policy, layout.shapes(rows, 1)),
                self.sft_arguments(0),
                trips=layout.chunks(rows),
                kernel_flops=layout.kernel_flops(model, rows, passes),
            )
        if stage == preferring.NAME and self.parts.preference is not None:
            rows = preferring.pair_capacity(c, layout)
            batch = layout.shapes(rows, 2 * c.preference.minibatch_pairs, ("log_prob_reference", "pair_weight"))
            yield Program(
                "policy/reference_of_pairs",
                score,
                (self.initial, layout.shapes(episodes=1)),
                layout.scoring(model),
                trips=layout.chunks(),
                kernel_flops=layout.kernel_flops(model),
            )
            yield Program(
                "policy/pairs",
                auxiliary_step,
                (self.policy, model.reads(batch)),
                self.preference_arguments(0, [0], 0),
                trips=layout.chunks(rows),
                kernel_flops=layout.kernel_flops(model, rows, 1 + passes),
            )
        if stage == "train" and preferring.reinforces(c):
            for name, params in self._scored.items():
                yield Program(
                    f"policy/{name}",
                    score,
                    (params, layout.shapes()),
                    layout.scoring(model),
                    trips=layout.chunks(),
                    kernel_flops=layout.kernel_flops(model),
                )
            rows, update = layout.minibatch_capacity(c.policy.minibatch_rows), self._policy_update()
            signals = ["advantage"] + ["token_weight"] * self.method.weights_tokens + ["log_prob_reference"] * bool(c.policy.kl_coef)
            signals += [name for auxiliary in self.auxiliaries.values() for name in auxiliary.reads_with_policy]
            batch = layout.shapes(rows, signals=signals)
            arrays, arguments = (self.policy, batch, batch.signals["advantage"]), policy_arguments(layout, seed=[0], update=0, **update)
            yield Program(
                "policy/update",
                policy_step,
                arrays,
                arguments,
                times=c.policy.epochs * -(-layout.capacity // rows),
                trips=layout.chunks(rows),
                kernel_flops=layout.kernel_flops(model, rows, passes),
            )
        for component in self.components.values():
            reads = stage == "train" and (getattr(component, "shared", False) or getattr(component, "reads_policy", False))
            yield from component.programs(stage, self.policy.params) if reads else component.programs(stage)

    def sft_arguments(self, update: int) -> dict:
        """Arguments of the supervised update, except state and rows."""
        return dict(
            optimizer=self.sft_optimizer,
            **self.layout.passes(self.model),
            **self.layout.training(self.model, streams.host(self.c.seed, "sft_dropout"), update),
        )

    def preference_arguments(self, number: int, seed, update: int) -> dict:
        """Arguments of an update on pairs in round `number`, except state and batch."""
        method = self.parts.preference
        return dict(
            name=preferring.NAME,
            outputs=LogProbs(self.c.rollout.temperature),
            method=preferring.PairLoss(method.beta_of(number), method.sft),
            optimizer=preferring.optimizer(self.c, method, number),
            **self.layout.passes(self.model),
            **self.layout.training(self.model, seed, update),
        )

    # --- Checkpoints ---

    def tree(self) -> dict:
        """Returns all arrays that the next update depends on; each auxiliary's are under its name."""
        tree = {"policy": self.policy} | ({} if self.initial is None else {"initial": self.initial})
        tree |= {} if self.behind is None else {"behind": self.behind.params}
        saved = {name: auxiliary.saved()[0] for name, auxiliary in self.auxiliaries.items() if auxiliary.begun}
        return tree | {name: trees for name, trees in saved.items() if trees}

    def facts(self) -> dict:
        """Returns the plain values that are saved with `tree`."""
        begun = {name: auxiliary.saved()[1] for name, auxiliary in self.auxiliaries.items() if auxiliary.begun}
        behind = None if self.behind is None else self.behind.facts
        return {"kl_coef": self.kl_coef, "successes": self.successes, "auxiliaries": begun, "behind": behind}

    def template(self, facts: dict) -> dict:
        """Returns a tree with the structure that `tree` had when `facts` were saved."""
        for name, found in facts["auxiliaries"].items():
            self.auxiliaries[name].expect(found, self._empty_batch)
        if facts.get("behind"):
            self.behind = self.view(0)
        return self.tree()

    def load(self, tree: dict, facts: dict) -> None:
        """Restores a saved tree and its facts."""
        self.policy, self.initial, self.kl_coef = tree["policy"], tree.get("initial"), facts["kl_coef"]
        self.successes = facts.get("successes", [])
        if behind := facts.get("behind"):
            self.behind = View(tree["behind"], behind["env_steps"], tuple(behind["successes"]), behind["staleness"])
        for name, found in facts["auxiliaries"].items():
            self.auxiliaries[name].load(tree.get(name, {}), found)
        if self.c.train.check_batches:
            trees = [tree.get(name, {}) for name in self.auxiliaries]
            for batch in jax.tree.leaves(trees, is_leaf=lambda x: isinstance(x, Batch)):
                if isinstance(batch, Batch):
                    validate(batch)

    def _empty_batch(self, signals):
        """A batch with the shapes of a packed rollout, as the template of a saved batch."""
        c = self.c.rollout
        tasks = training_tasks(self.c.seed, "train", 0, c.groups, c.group_size)
        batch = self.layout.pack([Episode(task) for task in tasks])
        empty = self.layout.shapes(len(batch.tokens), batch.num_episodes, signals).signals
        return batch.with_signals(**{name: np.zeros(x.shape, x.dtype) for name, x in empty.items()})


@partial(jax.jit, static_argnums=0)
def _credit(method, batch):
    return method.credit(batch)
