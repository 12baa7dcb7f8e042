"""The interface of credit assignment: from a batch and its signals to an advantage for every action token."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from stepreward import registry
from stepreward.batch import Batch
from stepreward.credit.schedules import Schedule, Standing, parse
from stepreward.envs.choosing import misfit
from stepreward.errors import did_you_mean
from stepreward.kernels import steps_to_tokens, token_stream, tokens_to_steps
from stepreward.signals import SCHEDULED

Array = jax.Array
Metrics = dict[str, Array]


@struct.dataclass
class Credit:
    """The credit of each action; a pytree without gradient.

    Attributes:
      advantage: float32 `[R, L]`, exactly 0 off `action_mask` and on masked episodes.
      step_reward: float32 `[E, S]`, the reward that the method gives each step, before any baseline is subtracted.
      step_advantage: float32 `[E, S]`, the advantage of each step (for token-level methods the mean over its tokens).
      returns: float32 `[R, L]`, target of the critic, or None where the method has no critic.
      metrics: float32 scalars to log.
      token_weight: float32 `[R, L]` ≥ 0, the weight of each action token in the policy's loss (`kernels.losses`), 0 off `action_mask` and on
        masked episodes; None where every token has the weight 1.
    """

    advantage: Array
    step_reward: Array
    step_advantage: Array
    returns: Array | None
    metrics: Metrics
    token_weight: Array | None = None


@dataclasses.dataclass(frozen=True)
class Method:
    """A credit-assignment method: an immutable set of options and two pure functions of arrays.

    A subclass is a frozen dataclass. It is registered under a name with `register`, lists the signals that it needs in `requires`, and
    implements `assign`. A method that trains a model beside the policy lists the loss of that model in `losses`.

    Each field of type float is a coefficient and may follow a schedule, except those in `unscheduled`. `assign` and the losses then
    read a traced scalar, so they must not branch on it in Python: `uses` says whether it may differ from 0.

    Attributes:
      schedules: pairs of a coefficient's name and its schedule; `make` checks them.
    """

    name: ClassVar[str] = ""
    has_prm: ClassVar[bool] = False
    recommended: ClassVar[str] = ""  # the variant that a run uses by default; "" is the paper's definition
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    filter: ClassVar[str] = "none"  # the filter of groups that a run uses by default (`credit.filters.KINDS`)
    reads_ahead: ClassVar[bool] = False  # whether its estimator may also read the steps after the one that it judges
    strategy: ClassVar[str] = "chain"  # how its episodes are rolled out (`rollout.strategies`); "chain" plays each task once

    capabilities: ClassVar[frozenset[str]] = frozenset()  # what the environment must declare (`envs.protocol`) for the method's signals
    unscheduled: ClassVar[frozenset[str]] = frozenset()  # fields of type float that are constant, for example since the host reads them

    schedules: tuple[tuple[str, Schedule], ...] = dataclasses.field(default=(), kw_only=True)

    @property
    def strategy_options(self) -> dict[str, Any]:
        """Constant options of the strategy, such as how many episodes it plays from each state."""
        return {}

    def scheduled_strategy_options(self, standing: Standing) -> dict[str, Any]:
        """Further options of the strategy, with the values that they have in an iteration: those that may follow a schedule."""
        return {}

    @property
    def requires(self) -> frozenset[str]:
        """Names of the arrays that `batch.signals` must hold."""
        return frozenset()

    @property
    def has_critic(self) -> bool:
        """Whether the method needs a critic, the signal `value`; it then defines `value_mask(batch)` and returns `Credit.returns`."""
        return False

    @property
    def has_progress(self) -> bool:
        """Whether the method needs an estimator, the signal `progress`; it then defines `progress_loss` and `contributions`."""
        return False

    @property
    def progress_options(self) -> dict[str, Any]:
        """The options that the training of the estimator depends on, as plain values; where they are equal, an estimator can be reused."""
        return {}

    @property
    def weights_tokens(self) -> bool:
        """Whether `Credit.token_weight` is an array, so that the tokens of the policy's loss have weights."""
        return False

    @property
    def label_signals(self) -> frozenset[str]:
        """Names of the signals that `progress_loss` or `prm_loss` reads and that come from the episodes (`labels`)."""
        return frozenset()

    @property
    def losses(self) -> Mapping[str, Callable[[Array, Batch], tuple[Array, Metrics]]]:
        """The losses of the models that learn beside the policy, by the name of the model: `(its outputs, batch) -> (loss, metrics)`."""
        return {}

    def host_signals(self, batch: Batch, episodes: Sequence[Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Computes the signals of an iteration that come from the episodes or are drawn, on the host.

        Args:
          batch: the batch that the episodes were packed into.
          episodes: the episodes in the order of the batch, with `steps` and `failure` (`rollout.episode.Episode`).
          rng: random generator; a new one in each iteration.

        Returns:
          Arrays by name, each one of `requires`.
        """
        return {}

    def labels(self, batch: Batch, episodes: Sequence[Any]) -> dict[str, np.ndarray]:
        """Computes the signals that `label_signals` names, on the host; `batch` and `episodes` as in `host_signals`."""
        return {}

    @property
    def needs_group(self) -> bool:
        """Whether a group of one episode teaches nothing, because its advantage is 0 or because it forms no pair."""
        return False

    @property
    def needs_pairs(self) -> bool:
        """Whether only groups with both a success and a failure train the process reward model."""
        return False

    @property
    def prm_signals(self) -> frozenset[str]:
        """Names of all signals that `prm_loss` reads; a batch that is kept to train on again keeps them."""
        return frozenset()

    # --- Scheduled coefficients ---

    @property
    def coefficients(self) -> dict[str, Schedule]:
        """The schedules of the coefficients that have one, by name."""
        return self.default_schedules | dict(self.schedules)

    @property
    def default_schedules(self) -> dict[str, Schedule]:
        """The schedules that options of the method are short for; one in `schedules` takes the place of one here."""
        return {}

    @classmethod
    def schedulable(cls) -> tuple[str, ...]:
        """Names of the fields that may follow a schedule."""
        numbers = {float, "float", "float | None"}
        return tuple(f.name for f in dataclasses.fields(cls) if f.type in numbers and f.name not in cls.unscheduled)

    def scheduled_values(self, standing: Standing) -> dict[str, np.float32]:
        """Returns the values of the scheduled coefficients in an iteration, as scalar signals."""
        return {f"{SCHEDULED}{name}": schedule(standing) for name, schedule in self.coefficients.items()}

    def uses(self, name: str) -> bool:
        """Whether a coefficient is scheduled, or differs from 0."""
        return name in self.coefficients or getattr(self, name) != 0

    def with_coefficients(self, batch: Batch) -> Method:
        """Returns the method with the values that its scheduled coefficients have in this batch, which may be traced.

        Raises:
          ValueError: the batch lacks one of the values; the message names it.
        """
        coefficients = self.coefficients
        if not coefficients:
            return self
        check_signals(self, batch, among=())
        method = copy.copy(self)  # not `dataclasses.replace`: the checks of `__post_init__` cannot compare traced values
        object.__setattr__(method, "schedules", tuple(coefficients.items()))
        for name in coefficients:
            object.__setattr__(method, name, batch.signals[f"{SCHEDULED}{name}"])
        return method

    # --- Credit and losses ---

    def credit(self, batch: Batch) -> Credit:
        """Returns the credit of every action; pure, jit-able, and without gradient. Its metrics hold the scheduled coefficients.

        Raises:
          ValueError: if a required signal is missing; the message names it.
        """
        check_signals(self, batch)
        credit = self.with_coefficients(batch).assign(batch)
        if coefficients := {f"coefficient_{name}": batch.signals[f"{SCHEDULED}{name}"] for name in self.coefficients}:
            values = {name: jnp.asarray(value, jnp.float32) for name, value in coefficients.items()}
            credit = credit.replace(metrics={**credit.metrics, **values})
        return jax.lax.stop_gradient(credit)

    def assign(self, batch: Batch) -> Credit:
        """Computes what `credit` returns, before the gradient is stopped. Each method defines it."""
        raise TypeError(f"{type(self).__name__} must define assign(batch)")

    def prm_loss(self, log_prob_prm_RxL: Array, batch: Batch) -> tuple[Array, Metrics]:
        """The loss that trains the method's process reward model, as a function of that model's outputs.

        The loss may compare episodes with each other, so it needs the whole batch. To accumulate the gradient of the
        parameters over micro-batches of rows, first compute `g = jax.grad(prm_loss)(log_prob, batch)`, `[R, L]`, then add up
        the gradients of Σ g·log_prob(parameters) over the micro-batches. By the chain rule their sum is the gradient of the
        loss.

        Args:
          log_prob_prm_RxL: float `[R, L]` log-probabilities of the tokens under the process reward model.
          batch: with the signals that `requires` names, except `log_prob_prm`.

        Returns:
          `(loss, metrics)`.

        Raises:
          ValueError: if the method has no process reward model (`has_prm` is False).
        """
        raise ValueError(f"method '{self.name}' has no process reward model, so it has no prm_loss")

    def progress_loss(self, output_ExS: Array, batch: Batch) -> tuple[Array, Metrics]:
        """The loss that trains the method's progress estimator, as a function of that model's outputs.

        Args:
          output_ExS: float `[E, S]`, the estimator's output at the last token of each step. Values at steps that do not count are
            not read.
          batch: whole episodes.

        Returns:
          `(loss, metrics)`, a mean over episodes or bags.

        Raises:
          ValueError: if the method has no progress estimator (`has_progress` is False).
        """
        raise ValueError(f"method '{self.name}' has no progress estimator, so it has no progress_loss")

    def contributions(self, output_ExS: Array, batch: Batch) -> Array:
        """float32 `[E, S]`: the contribution of each step, from the estimator's outputs; their sum predicts `explained_outcome`."""
        raise ValueError(f"method '{self.name}' has no progress estimator, so it has no contributions")

    def explained_outcome(self, batch: Batch) -> Array:
        """`[E]`: what the contributions of an episode add up to, if the estimator is exact; `batch` has the labels."""
        return batch.outcome


_METHODS: dict[str, type[Method]] = {}
_KIND = "credit method"


def register(name: str) -> Callable[[type[Method]], type[Method]]:
    """Class decorator that makes a method known to `make` under `name`. Raises ValueError if the name is taken."""
    return registry.adding(_METHODS, _KIND, name)


def names() -> tuple[str, ...]:
    """The registered methods, sorted."""
    return tuple(sorted(_METHODS))


def recommended_variant(name: str) -> str:
    """The variant that a run uses by default; "" for the defaults of the method, and for an unknown name."""
    return _METHODS[name].recommended if name in _METHODS else ""


def make(name: str, **options: Any) -> Method:
    """Builds a method by name.

    Args:
      name: one of `names()`.
      **options: fields of the method's dataclass. A method with a table `variants` also takes `variant`, the name of a set of
        options; explicit options override those of the variant. `schedules` is a mapping from coefficients to schedules, each a
        `Schedule` or a text for `schedules.parse`.

    Raises:
      ValueError: on an unknown name, variant, option or schedule, or a wrong value; the message lists what there is.
    """
    method = registry.find(_METHODS, _KIND, name)
    fields = [f.name for f in dataclasses.fields(method) if f.init and f.name != "schedules"]
    known = fields + (["variant"] if method.variants else [])
    registry.check_options(_KIND, name, (option for option in options if option != "schedules"), known)
    variant = options.pop("variant", None)
    if variant is not None and variant not in method.variants:
        raise ValueError(f"unknown variant '{variant}' of '{name}'; there are: {', '.join(sorted(method.variants))}")
    schedules = dict(options.pop("schedules", {}))
    if wrong := misfit(method, options):
        option, annotation = wrong
        raise ValueError(f"{option} of '{name}' must be of type {annotation}, not {options[option]!r}")
    made = method(**{**method.variants.get(variant, {}), **options})
    return _with_schedules(made, schedules, options) if schedules else made


def _with_schedules(method: Method, schedules: dict[str, Schedule | str], options: Mapping[str, Any]) -> Method:
    """Returns the method with schedules of its coefficients; raises ValueError if one is not possible."""
    found, can = [], method.schedulable()
    for field, schedule in schedules.items():
        what = f"the schedule of '{field}' of credit method '{method.name}'"
        if field not in can:
            why = "it is constant" if field in {f.name for f in dataclasses.fields(method)} else "there is no such coefficient"
            raise ValueError(
                f"{what}: {why}{did_you_mean(field, can)}; its coefficients that may be scheduled are: {', '.join(can) or 'none'}"
            )
        if field in options:
            raise ValueError(f"{what}: the option {field}={options[field]!r} sets the coefficient too; leave out one of the two")
        try:
            schedule = schedule if isinstance(schedule, Schedule) else parse(schedule)
            for value in (schedule.start, schedule.end):  # the method's own checks of the range
                dataclasses.replace(method, **{field: float(value)})
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None
        if schedule.reads_pairs and not method.has_prm:
            raise ValueError(f"{what}: {schedule} needs the pairs of a process reward model, and this method has none")
        found.append((field, schedule))
    return dataclasses.replace(method, schedules=tuple(sorted(found)))


def check_choice(method: Method, field: str, choices: tuple[str, ...]) -> None:
    """Raises a ValueError that lists the choices if the value of a field is not one of them."""
    value = getattr(method, field)
    if value not in choices:
        raise ValueError(f"{field} of '{method.name}' must be one of {', '.join(map(repr, choices))}, not {value!r}")


def check_at_least(method: Method, least: int, *fields: str) -> None:
    """Raises a ValueError if the value of one of the fields is below `least` or not a number; None is not checked."""
    for field in fields:
        value = getattr(method, field)
        if value is not None and not value >= least:
            raise ValueError(f"{field} of '{method.name}' must be at least {least}, not {value!r}")


def check_share(method: Method, *fields: str) -> None:
    """Raises a ValueError if the value of one of the fields does not lie in [0, 1]."""
    for field in fields:
        if not 0.0 <= getattr(method, field) <= 1.0:
            raise ValueError(f"{field} of '{method.name}' must lie in [0, 1], not {getattr(method, field)!r}")


def check_signals(method: Method, batch: Batch, *, among: Collection[str] | None = None) -> None:
    """Checks that the batch holds the signals that a method needs. The check is cheap and works on traced batches.

    Args:
      method: the method.
      batch: the batch, concrete or traced.
      among: the names to check; None checks all that the method requires. The values of scheduled coefficients are always checked.

    Raises:
      ValueError: a signal is missing; the message names the missing ones and those present.
    """
    needed = (method.requires | method.label_signals).intersection(method.requires if among is None else among)
    missing = sorted((needed | {f"{SCHEDULED}{name}" for name in method.coefficients}) - set(batch.signals))
    if missing:
        present = ", ".join(sorted(batch.signals)) or "none"
        raise ValueError(
            f"credit method '{method.name}' needs the signal(s) {', '.join(missing)}, which the batch does not hold "
            f"(it holds: {present}); add them with batch.with_signals(...)"
        )


def step_mask(batch: Batch) -> Array:
    """bool `[E, S]`: the steps that count, which are those of episodes whose environment did not fail."""
    return batch.step_mask & batch.episode_mask[:, None]


def token_mask(batch: Batch) -> Array:
    """bool `[R, L]`: the action tokens of the steps that count. Policy losses use this mask too."""
    return batch.action_mask & steps_to_tokens(step_mask(batch), batch.step_id)


def step_sum(x_RxL: Array, batch: Batch) -> Array:
    """`[E, S]`: sum over the counted action tokens of each step."""
    ids_RxL = jnp.where(token_mask(batch), batch.step_id, -1)
    return tokens_to_steps(x_RxL, ids_RxL, batch.num_episodes, batch.max_steps)


def token_count(batch: Batch) -> Array:
    """float32 `[E, S]`: number of counted action tokens of each step."""
    return step_sum(jnp.ones(batch.tokens.shape, jnp.float32), batch)


def step_mean(x_RxL: Array, batch: Batch) -> Array:
    """`[E, S]`: mean over the counted action tokens of each step, 0 for a step without one."""
    return step_sum(x_RxL, batch) / jnp.maximum(token_count(batch), 1.0)


def to_tokens(x_ExS: Array, batch: Batch) -> Array:
    """`[R, L]`: the value of its step at every counted action token, 0 elsewhere."""
    return jnp.where(token_mask(batch), steps_to_tokens(x_ExS, batch.step_id), 0.0)


def per_step(x_E: Array, batch: Batch) -> Array:
    """`[E, S]`: the value of its episode at every counted step, 0 elsewhere."""
    return jnp.where(step_mask(batch), x_E[:, None], 0.0)


def last_step(mask_ExS: Array) -> Array:
    """bool `[E, S]`: True at the last True step of each episode."""
    later_ExS = jnp.cumsum(mask_ExS[:, ::-1], axis=1)[:, ::-1]
    return mask_ExS & (later_ExS == 1)


def first_step(mask_ExS: Array) -> Array:
    """bool `[E, S]`: True at the first True step of each episode."""
    return mask_ExS & (jnp.cumsum(mask_ExS, axis=1) == 1)


def first_token(batch: Batch) -> Array:
    """bool `[R, L]`: True at the first counted action token of each step."""
    stream = token_stream(batch.step_id, token_mask(batch), batch.max_steps)
    started = jnp.pad(stream.step_end[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return stream.put(stream.mask & started, batch.tokens.shape)


def last_token(batch: Batch) -> Array:
    """bool `[R, L]`: True at the last counted action token of each step; the tokens of a step are adjacent in a row."""
    ids_RxL = jnp.where(token_mask(batch), batch.step_id, -1)
    return (ids_RxL >= 0) & (jnp.pad(ids_RxL[:, 1:], ((0, 0), (0, 1)), constant_values=-1) != ids_RxL)
