"""A frozen pair of policies: what is read from workdirs and model folders, what it says of a batch, and what is refused."""

import dataclasses
import json
import shutil
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepreward import credit, parallel
from stepreward.checkpoint import saved_counters
from stepreward.credit import base as credit_base
from stepreward.credit.base import step_mean
from stepreward.errors import UserError
from stepreward.models.decoder import unstack
from stepreward.models.tokenizer import train_symbol_tokenizer
from stepreward.training.export import export_workdir
from stepreward.training.scoring import score
from stepreward.training.train import Runner

SMALL = {
    "credit.method": "rloo", "eval.every": 100, "eval.episodes": 2, "eval.prm_as_policy_every": 0, "eval.final_episodes": 0,
    "sft.updates": 30, "sft.log_every": 10, "train.env_steps": 100,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PairReader(credit.Method):
    """The outcome's advantage, and the mean log-ratio of the pair among its metrics."""

    name: ClassVar[str] = "pair_reader"
    requires: ClassVar[frozenset[str]] = frozenset({"log_prob_trained", "log_prob_start"})

    def assign(self, batch):
        found = credit.make("rloo").assign(batch)
        ratio = step_mean(batch.signals["log_prob_trained"] - batch.signals["log_prob_start"], batch)
        return found.replace(metrics=found.metrics | {"ratio": jnp.abs(ratio).sum()})


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(credit_base, "_METHODS", credit_base._METHODS | {PairReader.name: PairReader})


@pytest.fixture(scope="module")
def base(micro_config, tmp_path_factory):
    """A finished run."""
    runner = Runner(micro_config(SMALL), tmp_path_factory.mktemp("base") / "run")
    runner.run()
    return runner


def paired(micro_config, base, trained=None, start="", **changes):
    return micro_config(
        SMALL | {
            "credit.method": "pair_reader", "frozen_pair.trained": str(trained or base.workdir), "frozen_pair.start": str(start),
            "stages.sft": str(base.workdir), "train.env_steps": 50,
        } | changes
    )  # fmt: skip


def assert_trees_equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_the_pair_is_a_runs_policy_and_its_supervised_start(base, micro_config, tmp_path):
    runner = Runner(paired(micro_config, base), tmp_path / "run")
    pair = runner.learner.auxiliaries["frozen_pair"]
    assert_trees_equal(pair.trained, base.learner.policy.params)
    assert_trees_equal(pair.start, runner.start())
    runner.run()
    lines = [line for line in runner.history() if line["stage"] == "train"]
    assert lines and all(line["credit/ratio"] > 1e-3 for line in lines)
    facts = saved_counters(runner.workdir)["inputs"]
    assert facts["frozen_pair.trained weights"] != facts["frozen_pair.start weights"]


def test_the_signals_are_the_log_probabilities_of_the_two_policies(base, micro_config, make_batch, tmp_path):
    runner = Runner(paired(micro_config, base), tmp_path / "run")
    try:
        learner, graphdef = runner.learner, runner.parts.graphdef
        rollout, metrics = runner.play(runner.held_out, jax.random.key(0))
        batch = learner.score(runner.pack(rollout), metrics)
        options = dict(graphdef=graphdef, chunk_rows=len(batch.tokens), temperature=1.0)
        plain = batch.replace(signals={})
        for name, params in (("log_prob_trained", base.learner.policy.params), ("log_prob_start", runner.start())):
            np.testing.assert_allclose(batch.signals[name], score(params, plain, **options)[0], atol=1e-5)
    finally:
        runner.close()


def test_model_folders_are_read(base, micro_config, tmp_path):
    for which in ("policy", "initial"):
        export_workdir(base.workdir, tmp_path / which, None, which, False, "")
    config = paired(micro_config, base, tmp_path / "policy", tmp_path / "initial")
    runner = Runner(config, tmp_path / "run")
    try:
        pair = runner.learner.auxiliaries["frozen_pair"]
        listed = lambda params: unstack(params, runner.parts.model_config.num_layers)
        assert_trees_equal(listed(pair.trained), listed(base.learner.policy.params))
        assert_trees_equal(listed(pair.start), listed(runner.start()))
    finally:
        runner.close()


@pytest.mark.parametrize("sft", [False, True])
def test_adapters_of_a_run_are_read_with_their_frozen_weights(base, micro_config, tmp_path, sft):
    adapted = {"lora.rank": 2, "lora.sft": sft} | ({} if sft else {"stages.sft": str(base.workdir)})
    other = Runner(micro_config(SMALL | adapted), tmp_path / "adapted")
    other.run()
    runner = Runner(paired(micro_config, base, other.workdir), tmp_path / "run")
    try:
        pair = runner.learner.auxiliaries["frozen_pair"]
        model = pair.models["log_prob_trained"]
        assert_trees_equal(pair.trained, other.learner.policy.params)
        assert_trees_equal(model.base, other.learner.model.base)
        assert (pair.models["log_prob_start"].base is not None) == sft
    finally:
        runner.close()


def test_a_moved_pair_is_the_same_and_a_continued_one_is_not(base, micro_config, tmp_path):
    shutil.copytree(base.workdir, tmp_path / "moved")
    Runner(paired(micro_config, base), tmp_path / "run").run()
    more = {"train.env_steps": 90}
    Runner(paired(micro_config, base, tmp_path / "moved", **more), tmp_path / "run").run()
    (latest,) = sorted((tmp_path / "moved" / "checkpoints").glob("*"), key=lambda path: int(path.name))[-1:]
    file = latest / "counters" / "metadata"
    facts = json.loads(file.read_text())
    facts["counters"]["wall_s"] += 1
    file.write_text(json.dumps(facts))
    with pytest.raises(UserError, match="frozen_pair.trained weights: the run in .* was made with"):
        Runner(paired(micro_config, base, tmp_path / "moved", **more), tmp_path / "run")


# --- What is refused, before anything is written ---


def refused(config, workdir, words):
    with pytest.raises((UserError, ValueError), match=words):
        Runner(config, workdir)
    assert not (workdir / "metrics.jsonl").exists()


def test_a_pair_that_is_not_named_is_asked_for(base, micro_config, tmp_path):
    config = paired(micro_config, base)
    config.frozen_pair.trained = ""
    refused(config, tmp_path / "run", "credit.method='pair_reader' compares two frozen policies: set frozen_pair.trained")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["trained", "start"])
def test_a_path_that_leads_nowhere_is_named(base, micro_config, tmp_path, key):
    config = paired(micro_config, base, **{f"frozen_pair.{key}": str(tmp_path / "nothing")})
    refused(config, tmp_path / "run", f"frozen_pair.{key}='.*nothing' is neither the workdir of a run nor the folder of a model")


def test_a_run_without_a_checkpoint_is_named(base, micro_config, tmp_path):
    begun = tmp_path / "begun"
    (begun / "stages").mkdir(parents=True)
    shutil.copy(base.workdir / "config.json", begun)
    refused(paired(micro_config, base, begun), tmp_path / "run", "frozen_pair.trained='.*begun': this run has no checkpoint yet")


def test_a_model_folder_alone_has_no_start(base, micro_config, tmp_path):
    export_workdir(base.workdir, tmp_path / "policy", None, "policy", False, "")
    refused(paired(micro_config, base, tmp_path / "policy"), tmp_path / "run", "is a model folder, which holds no earlier policy")


def test_another_tokenizer_is_refused(base, micro_config, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(base.workdir, other)
    shutil.rmtree(other / "tokenizer")
    train_symbol_tokenizer(["other words"], ("up",), other / "tokenizer")
    refused(paired(micro_config, base, other), tmp_path / "run", "frozen_pair.trained='.*other' has another tokenizer")


def test_weights_of_another_shape_are_refused(base, micro_config, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(base.workdir, other)
    text = (other / "config.json").read_text().replace('"tiny-micro"', '"tiny-0.1m"')
    assert "tiny-0.1m" in text
    (other / "config.json").write_text(text)
    refused(paired(micro_config, base, other), tmp_path / "run", "frozen_pair.trained='.*other' cannot be read: checkpoint .* has")


def test_the_plan_counts_two_more_models(micro_config):
    from stepreward.tpu import plan

    config = micro_config({"credit.method": "pair_reader", "frozen_pair.trained": "elsewhere"})
    listed = list(plan.programs(config, parallel.make_mesh(1, 1, 1)))
    names = [program.name for _, program, _ in listed]
    assert {"frozen_pair/log_prob_trained", "frozen_pair/log_prob_start"} <= set(names)
    assert all({"frozen_pair.trained", "frozen_pair.start"} <= set(held) for _, _, held in listed)
