"""Checks a config and builds the parts of a run from it, for training and evaluation alike."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from stepreward import credit, parallel, processes, tracking
from stepreward.config import TrackedConfig
from stepreward.credit.schedules import Standing
from stepreward.data.demonstrations import Demonstration
from stepreward.envs.choosing import environment_module
from stepreward.envs.protocol import EXPERT, IMAGE, REFERENCE, Prompt
from stepreward.errors import did_you_mean, naming
from stepreward.models import decoder
from stepreward.models.heads import HEADS
from stepreward.models.images import ImageReader, native_settings
from stepreward.preference import Preference
from stepreward.rollout import strategies
from stepreward.rollout.chat import Dialogue
from stepreward.rollout.checked import checked
from stepreward.rollout.engine import Engine
from stepreward.rollout.environments import Pool
from stepreward.rollout.fitting import LONG_OBSERVATIONS
from stepreward.rollout.mixed import MixedCollector
from stepreward.rollout.play import CONTEXTS, SCHEDULES, Collector, possible
from stepreward.rollout.pools import KINDS, make_pool
from stepreward.rollout.sampling import Sampling
from stepreward.rollout.strategies import Strategy
from stepreward.signals import computed
from stepreward.training import ahead, backbones, experts, preferring, streams
from stepreward.training.auxiliaries import AUXILIARIES
from stepreward.training.auxiliaries.critic import BACKBONES
from stepreward.training.auxiliaries.estimator import ATTENTION
from stepreward.training.auxiliaries.judge import Judge
from stepreward.training.demonstrating import NO_EXPERT, load_demonstrations
from stepreward.training.filtering import make_filter
from stepreward.training.held_out import first_pictures
from stepreward.training.idle import check_groups
from stepreward.training.minibatches import round_up
from stepreward.training.mixture import Mixture, views, without_imitation
from stepreward.training.outcomes import RunJudge
from stepreward.training.policy import ADVANTAGE_NORMS, PolicyLoss
from stepreward.training.words import Spoken, load_words

_AT_LEAST_ONE = (
    "rollout.groups", "rollout.group_size", "rollout.max_steps", "rollout.max_rows", "sft.episodes", "sft.rows", "sft.log_every",
    "exploration.tasks", "exploration.rollouts", "exploration.part_tasks", "estimator.minibatch_episodes", "estimator.epochs",
    "discriminator.minibatch_episodes", "discriminator.epochs", "prm.epochs", "critic.minibatch_rows", "critic.epochs", "policy.minibatch_rows", "policy.epochs", "train.chunk_rows",
    "eval.episodes", "eval.every",
    "checkpoint.every", "checkpoint.keep",
)  # fmt: skip


_AT_LEAST_ZERO = (
    "policy.kl_coef", "policy.stop_kl", "policy.kl_reward_coef", "policy.kl_reward_target", "critic.clip", "critic.coef",
    "rollout.invalid_penalty", "sft.stop_loss", "estimator.refresh_every", "estimator.patience", "eval.final_episodes",
    "eval.final_temperature", "rollout.max_image_tokens",
)  # fmt: skip
_NOT_BY_ROWS = ("token-mean", "step-mean")  # aggregations that do not depend on how tokens are packed into rows
_AT_FIRST = Standing()
OLD_LOG_PROBS = ("auto", "behaviour", "current")


@dataclasses.dataclass
class Parts:
    """The parts of a run, without model parameters.

    Attributes:
      collector: plays in the environment, or in those of the mixture.
      demonstrations: of all environments.
      mixture: the environments of the run; None if it has one.
      parts_of: for each environment of the mixture, the parts of a run of it alone. The factory and the prompt of a run of several
        environments are in these only.
    """

    factory: Callable[[], Any] | None
    prompt: Prompt | None
    chat: Dialogue
    mesh: Mesh
    graphdef: Any
    model_config: decoder.DecoderConfig
    collector: Collector | MixedCollector
    method: credit.Method
    policy_loss: PolicyLoss
    demonstrations: list[Demonstration]
    preference: Preference | None = None  # the method of the stage `preference`
    abstract: bool = False  # models consist of shapes, not arrays
    workdir: Path | None = None  # the run's folder, where auxiliaries may keep files
    collectors: dict[decoder.DecoderConfig, Collector] = dataclasses.field(default_factory=dict)  # see `collector_of`
    mixture: Mixture | None = None
    parts_of: dict[str, Parts] = dataclasses.field(default_factory=dict)

    @property
    def each(self) -> dict[str, Parts]:
        """The parts for each environment by its name in the mixture; in a run of one environment, these parts under ""."""
        return self.parts_of or {"": self}


def environment_factory(c) -> tuple[Callable[[], Any], Prompt]:
    """Returns the environment's factory and prompt, which the config's `environment` group names.

    Raises:
      ValueError: the module lacks `make` or `prompts`, `make` does not accept one of the settings, or it returns no factory.
    """
    module = environment_module(c.environment.name)
    settings = {"max_steps": c.rollout.max_steps, **c.environment.options.to_dict()}
    if c.environment.data:
        settings["data"] = c.environment.data
    for name, what in (("make", "make(preset, *, max_steps=None, **settings)"), ("prompts", "prompts(name)")):
        if not callable(getattr(module, name, None)):
            raise ValueError(f"environment.name={c.environment.name!r}: the module has no function {what}; see docs/environments.md.")
    _check_takes(module, settings)
    factory = module.make(c.environment.preset, **settings)
    if not callable(factory):
        raise ValueError(
            f"environment.name={c.environment.name!r}: make returned an object of type {type(factory).__name__}; it must return a "
            "function without arguments that makes an environment, such as functools.partial(Environment, preset)."
        )
    return factory, module.prompts(c.environment.prompt)


def _check_takes(module, settings: dict[str, Any]) -> None:
    """Raises ValueError if the environment's `make` does not accept one of `settings`; the message suggests the nearest name."""
    parameters = inspect.signature(module.make).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return  # `make` checks its settings itself
    known = [name for name in parameters if name != "preset"]
    for name in settings:
        if name not in known:
            key = {"max_steps": "the argument max_steps (rollout.max_steps)", "data": "the argument data (environment.data)"}
            what = key.get(name, f"environment.options.{name}")
            raise ValueError(
                f"{module.__name__}.make does not take {what}{did_you_mean(name, known)}; it takes {', '.join(known) or 'none'}"
            )


def environment_pool(c, factory) -> Pool:
    """The pool of the run's environments, whose return values are checked.

    `environment.pool` chooses the kind of pool; "auto" takes the module's `POOL`, or "inline" if it has none.
    """
    e = c.environment
    kind = e.pool
    if kind == "auto":
        kind = getattr(environment_module(e.name), "POOL", "inline")
        kind = kind(e.preset) if callable(kind) else kind
    return make_pool(kind, checked(factory), timeout_s=e.timeout_s, reset_timeout_s=e.reset_timeout_s, address=e.ray_address)


def build(c, workdir: Path) -> Parts:
    """Builds the parts of a run. The first call writes demonstrations and tokenizer into the workdir; later calls read them.

    Raises:
      ValueError: the config is inconsistent in itself, with this machine, or with the content of the workdir.
    """
    mesh = parallel.make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tensor)
    parallel.check_rows(mesh, rollout__max_rows=c.rollout.max_rows, train__chunk_rows=c.train.chunk_rows)
    method = make_method(c)
    learners = [kind.title for kind in AUXILIARIES if kind.demonstrated and kind.wanted(method)]
    wanted_by = f"the {learners[0]} of credit.method={method.name!r}" if learners else ""
    mixture, worlds = Mixture.of(c), _worlds(c, workdir / "demonstrations", wanted_by)
    folder = processes.together(lambda: backbones.find_model(c.model.path, c.model.download))
    chat = load_words(c, folder, workdir / "tokenizer", [world.spoken for world in worlds.values()])
    codec = chat.codec
    model_config = backbones.model_config(c, mesh, round_up(codec.vocab_size, 8))
    if codec.vocab_size > model_config.vocab_size:
        raise ValueError(
            f"the tokenizer of model.path={c.model.path!r} has {codec.vocab_size} tokens, but its model has only "
            f"{model_config.vocab_size}: use a tokenizer and a model that belong together."
        )
    graphdef = decoder.graph(model_config)
    pools = {name: world.pool for name, world in worlds.items()}
    reader = _reader(c, model_config, folder, pools)
    engine = make_engine(c, graphdef, model_config, mesh, chat.stop_ids, codec.pad_id, reader)
    each = {}
    for name, world in worlds.items():
        with naming(name):
            each[name] = make_collector(world.view, engine, world.pool, world.spoken.prompt, chat, reader)
    collector = each.get("")
    if mixture is not None:
        judged = [entry.name for entry in mixture.entries if entry.judged]
        collector = MixedCollector(each, dict.fromkeys(judged, RunJudge(c, Path(workdir))) if judged else {})
    collector.check_offers(method.capabilities, f"credit.method={method.name!r}")
    if scores_answers(method):
        collector.check_offers(frozenset({REFERENCE}), f"the signal answer_log_prob of credit.method={method.name!r}")
    strategy = make_strategy(c, method)
    collector.check_offers(strategy.capabilities, f"the rollout strategy of credit.method={method.name!r}")
    if strategy.restarts:
        collector.check_restarts()
    prefers = preferring.make_preference(c)
    if prefers is not None and not c.stages.preference:
        collector.check_offers(preferring.needed(c, prefers), f"preference.method={prefers.name!r}")
        if reader is not None and experts.asks_endpoint(c):
            raise ValueError("expert.kind='endpoint' shows an expert no pictures: use the environment's text prompt, or its own expert.")
        if prefers.restarts:
            collector.check_restarts()

    def parts(factory, prompt, collector, demonstrations, **more) -> Parts:
        made = (factory, prompt, chat, mesh, graphdef, model_config, collector, method, make_policy_loss(c), demonstrations, prefers)
        return Parts(*made, workdir=Path(workdir), **more)

    alone = {name: parts(world.factory, world.spoken.prompt, each[name], world.imitated) for name, world in worlds.items()}
    if mixture is None:
        return alone[""]
    demonstrations = [record for world in worlds.values() for record in world.imitated]
    return parts(None, None, collector, demonstrations, mixture=mixture, parts_of=alone)


@dataclasses.dataclass(frozen=True)
class _World:
    """One environment of a run: its config, factory and pool, what is said in it, and the demonstrations that are imitated."""

    view: Any
    factory: Callable[[], Any]
    pool: Pool
    spoken: Spoken
    imitated: list[Demonstration]


def _worlds(c, folder: Path, wanted_by: str) -> dict[str, _World]:
    """Makes the environments of a run, by their name in the mixture, and their demonstrations in `folder`; see `mixture.views`.

    Args:
      wanted_by: see `load_demonstrations`.
    """
    found, able = {}, False
    for name, view in views(c).items():
        with naming(name):
            factory, prompt = environment_factory(view)
            pool = environment_pool(view, factory)
            imitates = not name or EXPERT in pool.capabilities()
            able, view = able or imitates, view if imitates else without_imitation(view)
            records = processes.on_writer(lambda: load_demonstrations(view, pool, folder / name, wanted_by))
            found[name] = _World(view, factory, pool, Spoken(records, prompt), records if imitates else [])
    if c.sft.updates and not able:
        raise ValueError(f"in none of mixture.environments is anybody to imitate: {NO_EXPERT}")
    return found


def make_collector(c, engine: Engine, pool: Pool, prompt: Prompt, chat: Dialogue, reader: ImageReader | None) -> Collector:
    """Returns the collector of one environment."""
    return Collector(
        engine,
        pool,
        prompt,
        chat,
        c.rollout.context,
        c.rollout.history,
        c.rollout.max_steps,
        c.rollout.max_rows,
        reader=reader,
        invalid_penalty=c.rollout.invalid_penalty,
        long_observation=c.rollout.long_observation,
        longest_answer=c.rollout.max_answer_tokens,
        schedule=c.rollout.schedule,
    )


def _reader(c, model_config: decoder.DecoderConfig, folder, pools: dict[str, Pool]) -> ImageReader | None:
    """Returns the reader of a run's pictures; a mixture has text only."""
    most = c.rollout.max_image_tokens, c.rollout.max_prompt_tokens
    if "" in pools:
        return image_reader(model_config, folder, pools[""], *most)
    for name, pool in pools.items():
        if model_config.vision is not None and IMAGE in pool.capabilities():
            raise ValueError(
                f"mixture.environments.{name} has pictures, and a run of several environments shows text only: choose a model that reads text "
                "(model.preset), or a preset of the environment without pictures."
            )
    return None


def image_reader(model_config: decoder.DecoderConfig, folder, pool: Pool, most: int, most_prompt: int) -> ImageReader | None:
    """Returns the reader of the environment's pictures, one per turn; None if the model or the environment has text only.

    Its capacity is `most` tokens per picture, or the size of the largest first picture of 64 tasks in each split.

    Args:
      folder: the model folder, which holds the settings of the image processor; None reads pixels unchanged.
      most: maximum number of placeholder tokens per picture; 0 takes that of the largest picture.
      most_prompt: maximum number of tokens per prompt.

    Raises:
      ValueError: every environment fails, or a picture cannot be read or does not fit; the message names the config key.
    """
    if model_config.vision is None or IMAGE not in pool.capabilities():
        return None
    pictures = processes.on_writer(lambda: first_pictures(pool, lambda index: streams.task(0, "pictures", index)))
    try:
        reader = ImageReader.sized(model_config.vision, folder or native_settings(model_config.vision), pictures, most)
    except ValueError as error:
        key = f" (rollout.max_image_tokens={most}; 0 allows the largest picture)" if most else ""
        raise ValueError(f"the environment's pictures cannot be shown: {error}{key}") from None
    if reader.most_tokens >= most_prompt:
        raise ValueError(
            f"pictures have up to {reader.most_tokens} tokens and do not fit into rollout.max_prompt_tokens={most_prompt}: raise "
            f"rollout.max_prompt_tokens and rollout.max_row_tokens above {reader.most_tokens}, or show smaller pictures "
            "(environment.preset, environment.options)."
        )
    return reader


def make_engine(
    c, graphdef, model_config: decoder.DecoderConfig, mesh: Mesh, stop_ids: tuple[int, ...], pad_id: int, reader=None
) -> Engine:
    """The engine that samples the answers of a run."""
    sampling = Sampling(stop_ids, c.rollout.max_answer_tokens, c.rollout.temperature, c.rollout.top_k, c.rollout.top_p)
    # A later turn of a conversation also processes the last token of the previous answer, and the end token if that answer was cut.
    left_over = 2 if c.rollout.context == "episode" else 0
    return Engine(
        graphdef,
        model_config,
        sampling,
        max_length=c.rollout.max_row_tokens,
        buckets=prompt_buckets(c.rollout.max_prompt_tokens + left_over, c.rollout.max_row_tokens),
        pad_id=pad_id,
        sharding=parallel.row_sharding(mesh),
        rows_multiple=mesh.shape["data"] * mesh.shape["fsdp"],
        lora=backbones.lora_config(c),
        reader=reader,
        stacks=possible(c.rollout.schedule, parallel.hosts(mesh), reader is not None) == "batch",
    )


def collector_of(c, parts: Parts, model: backbones.Backbone) -> Collector:
    """Returns the collector that plays a model of the run; a PRM of another shape gets a collector with its own engine.

    Raises:
      ValueError: the run shows pictures, but the model reads only text.
    """
    shape = dataclasses.replace(model.config, lora=None)
    if shape == parts.model_config:
        return parts.collector
    if parts.collector.reader is not None and shape.vision is None:
        raise ValueError(
            "the PRM (prm.preset, prm.path) reads only text and cannot play an environment with pictures: set eval.prm_as_policy_every=0."
        )
    if shape not in parts.collectors:
        chat = parts.chat
        engine = make_engine(c, model.graphdef, shape, parts.mesh, chat.stop_ids, chat.codec.pad_id, parts.collector.reader)
        parts.collectors[shape] = parts.collector.with_engine(engine)
    return parts.collectors[shape]


def check(c) -> None:
    """Checks a config before anything is written or compiled. Keys read here still count as unread.

    Raises:
      ValueError: a value is out of range, keys contradict each other, or the machine does not satisfy them.
      FileNotFoundError: there is no model folder at model.path or prm.path.
      UserError: the tracker is unknown or not installed.
    """
    c = c.untracked if isinstance(c, TrackedConfig) else c
    if not 0 <= c.seed < 2**32:
        raise ValueError(f"seed={c.seed} must be a whole number from 0 to {2**32 - 1}.")
    tracking.check(c.tracker)
    for key in _AT_LEAST_ONE:
        group, name = key.split(".")
        if c[group][name] < 1:
            raise ValueError(f"{key}={c[group][name]} must be at least 1.")
    mixture, each = Mixture.of(c), views(c)
    for name, view in each.items():
        with naming(name):
            _check_environment(view)
    backbones.check(c)
    for path in (c.model.path, c.prm.path):
        backbones.find_model(path, c.model.download)
    mesh = parallel.make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tensor)
    parallel.check_rows(mesh, rollout__max_rows=c.rollout.max_rows, train__chunk_rows=c.train.chunk_rows)
    prompt_buckets(c.rollout.max_prompt_tokens, c.rollout.max_row_tokens)
    Sampling((), c.rollout.max_answer_tokens, c.rollout.temperature, c.rollout.top_k, c.rollout.top_p)
    loss = make_policy_loss(c)
    if c.train.pack_rows and loss.aggregation not in _NOT_BY_ROWS:
        raise ValueError(
            f"policy.aggregation={loss.aggregation!r} depends on the number of rows, which train.pack_rows reduces: set it to "
            f"{' or '.join(_NOT_BY_ROWS)}, or set train.pack_rows=False."
        )
    choices = {"rollout.context": CONTEXTS, "rollout.schedule": SCHEDULES, "rollout.long_observation": LONG_OBSERVATIONS, "credit.outcome": ("success", "return"), "policy.advantage_norm": ADVANTAGE_NORMS,
               "policy.old_log_prob": OLD_LOG_PROBS, "train.mode": ("online", "offline"), "critic.backbone": BACKBONES,
               "critic.head": HEADS, "estimator.head": HEADS, "discriminator.head": HEADS, "estimator.attention": ATTENTION}  # fmt: skip
    for key, known in choices.items():
        group, name = key.split(".")
        if c[group][name] not in known:
            raise ValueError(f"{key}={c[group][name]!r} is not one of {', '.join(known)}.")
    ahead.check(c)
    method = make_method(c)
    strategy = make_strategy(c, method)
    for name, view in each.items():
        with naming(name):
            strategy.check(c.rollout.group_size, view.rollout.max_steps)
    signals = computed() | strategy.provides
    missing = sorted((method.requires | method.label_signals) - signals)
    if missing:
        able = ", ".join(name for name in credit.names() if not credit.make(name).requires - signals)
        raise ValueError(
            f"credit.method={c.credit.method!r} needs {', '.join(missing)}, which a run does not compute; methods that a run "
            f"supports: {able}."
        )
    preferring.check(c)
    check_groups(c, method, signals)
    make_filter(c, method)
    if mixture is not None:
        _check_alone(c, method)
    judged = mixture is not None and any(entry.judged for entry in mixture.entries)
    for kind in AUXILIARIES:
        if kind.wanted(method) or kind.asked(c) or (kind is Judge and (judged or preferring.judged(c))):
            kind.check(c, method)
    for name in ("minibatch_groups", "replay", "warmup_batches"):
        if c.prm[name] < 0:
            raise ValueError(f"prm.{name}={c.prm[name]} must be at least 0.")
    if c.prm.resync and getattr(method, "reward_from", "pre") == "post":
        raise ValueError(
            "prm.resync trains the PRM after the policy, so step rewards cannot come from the updated PRM "
            "(credit.options.reward_from='post'): set prm.resync=False or credit.options.reward_from='pre'."
        )
    for key in _AT_LEAST_ZERO:
        group, name = key.split(".")
        if c[group][name] < 0:
            raise ValueError(f"{key}={c[group][name]} must be at least 0.")
    if not 0 <= c.estimator.held_out < 1:
        raise ValueError(f"estimator.held_out={c.estimator.held_out} is a share of the tasks: it must be at least 0 and less than 1.")
    for name in ("exploration", "estimator"):
        if c.stages[name] and not c.stages.sft:
            raise ValueError(
                f"stages.{name}={c.stages[name]!r} was made with the supervised policy of another run: set stages.sft to "
                "that run's workdir."
            )
    if c.train.mode == "offline":
        _check_offline(c, method)


def _check_environment(c) -> None:
    environment_factory(c)
    e = c.environment
    if e.pool not in ("auto", *KINDS):
        raise ValueError(f"environment.pool={e.pool!r} is not one of auto, {', '.join(KINDS)}.")
    for name in ("timeout_s", "reset_timeout_s"):
        if not 0 < e[name] < math.inf:
            raise ValueError(f"environment.{name}={e[name]} must be a positive, finite number of seconds.")


def _check_alone(c, method) -> None:
    """Raises ValueError if a run of several environments asks for what is built for one."""
    learners = [f"credit.method={method.name!r}" for kind in AUXILIARIES if kind.demonstrated and kind.wanted(method)]
    learners += [f"preference.method={c.preference.method!r}"] if c.preference.method else []
    if learners:
        raise ValueError(
            f"{learners[0]} compares with the expert of one environment: leave mixture.environments empty, or choose another method."
        )


def _check_offline(c, method) -> None:
    if c.exploration.rollouts != c.rollout.group_size:
        raise ValueError(
            f"rollout.group_size={c.rollout.group_size} differs from exploration.rollouts={c.exploration.rollouts}, but train.mode=offline "
            f"trains on the explored groups: set rollout.group_size={c.exploration.rollouts}."
        )
    if c.exploration.tasks < c.rollout.groups:
        raise ValueError(
            f"train.mode=offline needs rollout.groups={c.rollout.groups} tasks per iteration, but exploration.tasks={c.exploration.tasks}: "
            "lower rollout.groups or raise exploration.tasks."
        )
    if method.strategy != "chain":
        raise ValueError(
            f"train.mode=offline plays no new episodes, but credit.method={method.name!r} needs those of the rollout strategy "
            f"{method.strategy!r}: set train.mode=online."
        )
    if method.has_prm:
        raise ValueError(
            f"train.mode=offline plays no new episodes, but the PRM of credit.method={method.name!r} needs them: set train.mode=online."
        )


def prompt_buckets(most: int, longest_row: int) -> tuple[int, ...]:
    """Returns the lengths to which a turn's new tokens are padded: the maximum, and halves of it until one is at most 64.

    Raises:
      ValueError: `most` exceeds `longest_row`.
    """
    if most > longest_row:
        raise ValueError(f"rollout.max_prompt_tokens={most} exceeds rollout.max_row_tokens={longest_row}.")
    sizes = [most]
    while sizes[-1] > 64:
        sizes.append(sizes[-1] // 2)
    return tuple(sizes)


def make_method(c) -> credit.Method:
    """Returns the credit method with the options that the config sets.

    Raises:
      ValueError: the method, variant, an option or a schedule is unknown or wrong.
    """
    options = {k: v for k, v in c.credit.options.to_dict().items() if v is not None}
    variant = credit.recommended_variant(c.credit.method) if c.credit.variant == "auto" else c.credit.variant
    if variant:
        options["variant"] = variant
    if "kl_in_reward" not in options and c.policy.kl_reward_coef > 0:
        options["kl_in_reward"] = True
    if "schedules" in options:
        raise ValueError("schedules of coefficients are not an option of the method: set credit.schedules.NAME instead of credit.options.")
    options["schedules"] = c.credit.schedules.to_dict()
    return credit.make(c.credit.method, **options)


def make_strategy(c, method: credit.Method, standing: Standing = _AT_FIRST) -> Strategy:
    """Returns the strategy by which the method's episodes are played; what it calls the outcome of an episode is `credit.outcome`.

    Args:
      standing: what the options that follow a schedule depend on; the default is the standing before the first iteration.
    """
    found = strategies.make(method.strategy, **method.strategy_options, **method.scheduled_strategy_options(standing))
    if hasattr(found, "outcome") and "outcome" not in method.strategy_options:
        return dataclasses.replace(found, outcome=c.credit.outcome)
    return found


def scores_answers(method: credit.Method) -> bool:
    """Whether rollouts score the environment's reference answer before each step."""
    return "answer_log_prob" in method.requires


def recomputes_old_log_prob(c) -> bool:
    """Whether an offline run replaces the behaviour policy's log-probabilities by the current policy's (as SPA's release does)."""
    return c.policy.old_log_prob == "current" or (c.policy.old_log_prob == "auto" and c.credit.variant == "released")


def make_policy_loss(c) -> PolicyLoss:
    """Returns the policy's objective."""
    p = c.policy
    return PolicyLoss(p.ratio, p.clip_low, p.clip_high, p.dual_clip or None, p.aggregation, p.constant, p.entropy_coef, p.kl_coef, p.kl)
