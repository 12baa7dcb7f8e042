"""Schedules of coefficients: their values by hand, what is refused, every coefficient of every method, and runs."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from references import pack, random_episodes
from resuming import stop_after

from stepreward.credit import Method, make, names
from stepreward.credit.schedules import KINDS, Linear, PairAccuracy, Schedule, Standing, Success, parse
from stepreward.errors import UserError
from stepreward.metrics import read_metrics
from stepreward.training import setup
from stepreward.training.train import Runner


def test_linear_by_hand():
    schedule = Linear(1.0, 0.2, 4)
    assert [float(schedule(Standing(i))) for i in (0, 1, 2, 4, 9)] == pytest.approx([1.0, 0.8, 0.6, 0.2, 0.2])


def test_success_by_hand():
    schedule = Success(1.0, 0.0, 0.2, 0.8, 2)
    at = lambda *successes: float(schedule(Standing(len(successes), successes)))
    assert at() == 1.0 and at(0.1) == 1.0 and at(0.9) == 0.0
    assert at(0.5) == pytest.approx(0.5) and at(0.9, 0.3, 0.4) == pytest.approx(0.75)  # the mean of the last two


def test_pair_accuracy_by_hand():
    schedule = PairAccuracy(0.0, 0.3)
    at = lambda accuracy: float(schedule(Standing(pair_accuracy=accuracy)))
    assert [at(0.5), at(0.25), at(1.0), at(0.75)] == pytest.approx([0.0, 0.0, 0.3, 0.15])


@pytest.mark.parametrize("text", ["linear(1.0, 0.1, 100)", "success(1, 0, 0.2, 0.8, 5)", "pair_accuracy(0, 1)"])
def test_a_text_is_read_and_written(text):
    assert str(parse(text)) == text and parse(str(parse(text))) == parse(text)


def test_arguments_may_be_named():
    assert parse(" linear(1, end=0.1, iterations=5)") == Linear(1, 0.1, 5)
    assert parse("success(1, 0, 0.2, 0.8)").iterations == 10


@pytest.mark.parametrize(
    "text",
    ["linaer(1, 0, 5)", "0.5", "linear", "linear(1, 0, x)", "linear(*[1])", "linear(1, 0, 5", "__import__('os')", "linear(1, 0, 5, 6)", ""],
)
def test_what_is_no_schedule_is_shown_the_forms(text):
    with pytest.raises(ValueError, match=r"is not a schedule; write linear\(start, end, iterations\) or success\(start, end, low"):
        parse(text)


@pytest.mark.parametrize(
    "text",
    ["linear(1, 0)", "linear(1, 0, 2.5)", "linear(1, 0, True)", "linear('a', 0, 5)", "linear(1, 0, step=5)", "linear(1, 0, 5, start=2)",
     "linear(1e999, 0, 5)"],
)  # fmt: skip
def test_wrong_arguments_are_shown_the_form(text):
    with pytest.raises(ValueError, match=r"does not have the form linear\(start, end, iterations\)|is not a schedule"):
        parse(text)


@pytest.mark.parametrize(
    "text, message",
    [
        ("linear(1, 0, 0)", "iterations must be at least 1"),
        ("success(1, 0, 0.8, 0.2)", "low < high"),
        ("success(1, 0, 0, 1, 0)", "at least 1"),
    ],
)
def test_values_out_of_range_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_a_kind_of_one_s_own_is_one_class(monkeypatch):
    monkeypatch.setattr("stepreward.credit.schedules.KINDS", dict(KINDS))

    @dataclasses.dataclass(frozen=True)
    class Cosine(Schedule):
        name = "cosine"
        iterations: int

        def share(self, standing):
            return 0.5 - 0.5 * np.cos(np.pi * min(1.0, standing.iteration / self.iterations))

    KINDS.pop("cosine", None)
    assert float(Cosine(1.0, 0.0, 4)(Standing(2))) == pytest.approx(0.5)


# --- Methods ---


@pytest.fixture(scope="module")
def batch():
    return pack(random_episodes(np.random.default_rng(1), groups=(4, 3, 4, 1), failed=(5,), uniform=(2,)))


def cases():
    """Each method, with all of its coefficients scheduled at their constant values; and the options that switch more of them on."""
    more = {"istar": {"nll_coef": 0.5, "prm_beta": 0.1, "step_norm": "std"}, "rudder": {"baseline": "critic"}}
    more |= {"progrm": {"baseline": "critic"}, "spa": {"level": "token"}}
    return [(name, {}) for name in names()] + list(more.items())


@partial(jax.jit, static_argnums=0)
def everything(method: Method, batch):
    found = {"credit": method.credit(batch)}
    current = method.with_coefficients(batch)
    if method.has_prm:
        found["prm"] = jax.value_and_grad(current.prm_loss, has_aux=True)(batch.signals["log_prob_prm"], batch)
    if method.has_progress:
        found["estimator"] = jax.value_and_grad(current.progress_loss, has_aux=True)(batch.signals["progress"], batch)
        found["contributions"] = current.contributions(batch.signals["progress"], batch)
    return found


@pytest.mark.parametrize("name, options", cases())
def test_every_coefficient_works_traced(name, options, batch):
    """A scheduled coefficient gives what the constant of the same value gives; its values are among the metrics."""
    constant = make(name, **options)
    can = [field for field in constant.schedulable() if getattr(constant, field) is not None]
    fixed = {f.name for f in dataclasses.fields(constant) if f.type == "float"} - set(constant.schedulable())
    assert fixed <= constant.unscheduled
    if not can or not constant.requires <= set(batch.signals):
        return
    values = {field: getattr(constant, field) for field in can}
    scheduled = dataclasses.replace(constant, schedules=tuple((field, Linear(value, value, 5)) for field, value in values.items()))
    traced = batch.with_signals(**scheduled.scheduled_values(Standing(3)))
    expected, found = everything(constant, batch), everything(scheduled, traced)
    logged = {field: found["credit"].metrics.pop(f"coefficient_{field}") for field in can}
    np.testing.assert_allclose([logged[field] for field in can], [values[field] for field in can], rtol=1e-6)
    if "prm" in found and not constant.nll_coef:
        found["prm"][0][1].pop("nll")  # a scheduled coefficient is always used
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, expected)


@pytest.mark.parametrize("name", names())
def test_what_the_rollout_strategy_reads_is_constant(name):
    method = make(name)
    assert not set(method.strategy_options) & set(method.schedulable())


def test_one_program_serves_every_value(batch):
    method = make("istar", schedules={"alpha": "linear(1, 0, 4)"})
    before = everything._cache_size()
    found = [everything(method, batch.with_signals(**method.scheduled_values(Standing(i)))) for i in range(3)]
    assert everything._cache_size() == before + 1
    assert [float(f["credit"].metrics["alpha"]) for f in found] == [1.0, 0.75, 0.5]
    np.testing.assert_allclose(found[2]["credit"].advantage, make("istar", alpha=0.5).credit(batch).advantage, atol=1e-6)


def test_a_schedule_from_0_switches_a_part_on(batch):
    """`nll_coef` is 0 by default, and α of SPA at 0 has no estimator: a schedule that begins at 0 has both."""
    method = make("istar", schedules={"nll_coef": "linear(0, 1, 4)"})
    of = lambda method, batch: method.with_coefficients(batch).prm_loss(batch.signals["log_prob_prm"], batch)[0]
    loss = lambda i: of(method, batch.with_signals(**method.scheduled_values(Standing(i))))
    assert loss(0) == pytest.approx(of(make("istar"), batch)) and loss(4) > loss(0)
    assert make("spa", alpha=0.0, schedules={}).has_progress is False
    assert make("spa", schedules={"alpha": "linear(0, 1, 4)"}).has_progress


def test_a_schedule_takes_the_place_of_the_scaled_alpha():
    stable = make("istar", variant="stable")
    assert stable.coefficients == {"alpha": PairAccuracy(0.0, 0.3)}
    assert make("istar", variant="stable", schedules={"alpha": "linear(1, 0, 4)"}).coefficients == {"alpha": Linear(1, 0, 4)}


def test_a_missing_value_is_named(batch):
    method = make("istar", schedules={"beta": "linear(1, 0.5, 4)"})
    for function in (method.credit, method.with_coefficients):
        with pytest.raises(ValueError, match="needs the signal.*scheduled_beta"):
            function(batch)


@pytest.mark.parametrize(
    "name, options, schedules, message",
    [
        ("istar", {}, {"alhpa": "linear(1, 0, 4)"}, "there is no such coefficient.*did you mean 'alpha'"),
        ("istar", {}, {"merge": "linear(1, 0, 4)"}, "'merge'.*it is constant.*are: beta, alpha"),
        ("gigpo", {}, {"similarity": "linear(1, 0.9, 4)"}, "'similarity'.*it is constant"),
        ("istar", {}, {"alpha": "0.5"}, "'alpha' of credit method 'istar': '0.5' is not a schedule"),
        ("istar", {}, {"alpha": 0.5}, "is not a schedule"),
        ("istar", {}, {"alpha": "linear(1, -1, 4)"}, "alpha of 'istar' must be at least 0, not -1.0"),
        ("ppo", {}, {"discount": "linear(0.9, 1.1, 4)"}, r"discount of 'ppo' must lie in \[0, 1\], not 1.1"),
        ("istar", {"alpha": 0.5}, {"alpha": "linear(1, 0, 4)"}, "the option alpha=0.5 sets the coefficient too"),
        ("spa", {}, {"beta": "pair_accuracy(0, 1)"}, "needs the pairs of a process reward model, and this method has none"),
        ("rloo", {}, {"alpha": "linear(1, 0, 4)"}, "may be scheduled are: none"),
    ],
)
def test_bad_schedules_are_one_clear_error(name, options, schedules, message):
    with pytest.raises(ValueError, match=message):
        make(name, schedules=schedules, **options)


# --- Runs ---


def trained(runner):
    return [r for r in read_metrics(runner.workdir) if r["stage"] == "train"]


def test_a_run_follows_its_schedules_and_resumes_exactly(micro_config, tmp_path):
    config = {
        "credit.schedules.alpha": "success(1, 0, 0.0, 1.0, 3)", "credit.schedules.nll_coef": "linear(0.5, 0, 4)", "prm.replay": 1,
        "train.env_steps": 300, "checkpoint.every": 1, "eval.every": 99, "eval.prm_as_policy_every": 0, "prm.warmup_batches": 1,
    }  # fmt: skip
    whole = Runner(micro_config(config), tmp_path / "whole")
    whole.run()
    records = trained(whole)
    successes = [r["rollout/success"] for r in records]
    expected = [1.0] + [1 - np.mean(successes[max(0, i - 3) : i]) for i in range(1, len(records))]
    np.testing.assert_allclose([r["credit/coefficient_alpha"] for r in records], expected, rtol=1e-5)
    np.testing.assert_allclose([r["credit/coefficient_nll_coef"] for r in records], [0.5 - 0.125 * i for i in range(len(records))])
    cut = Runner(micro_config(config), tmp_path / "cut")
    stop_after(cut, 2)
    Runner(micro_config(config), tmp_path / "cut").run()
    same = lambda r: {k: v for k, v in r.items() if not k.startswith("time/") and k not in ("wall_s", "rollout/tokens_per_s")}
    assert [same(r) for r in records] == [same(r) for r in trained(cut)]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"credit.schedules.alpha": "linear(1, 0)"}, "linear"),
        ({"credit.schedules.gamma": "linear(1, 0, 5)"}, "no such coefficient"),
        ({"credit.options.schedules": ()}, "set credit.schedules.NAME"),
    ],
)
def test_a_run_refuses_a_bad_schedule_before_it_starts(micro_config, tmp_path, changes, message):
    with pytest.raises((ValueError, UserError), match=message):
        Runner(micro_config(changes), tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        setup.check(micro_config(changes))
    assert not (tmp_path / "run").exists()
