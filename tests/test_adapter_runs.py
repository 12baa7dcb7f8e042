"""Runs whose models are adapters over frozen weights."""

import jax
import numpy as np
import pytest

from stepreward.models.adapters import join, merge_adapters
from stepreward.models.heads import decoder_of
from stepreward.training.auxiliaries.prm import score
from stepreward.training.evaluate import evaluate_workdir
from stepreward.training.train import Runner

TIMES = ("time/", "wall_s", "rollout/tokens_per_s")
LORA = {"lora.rank": 2, "lora.targets": ("query", "value", "down"), "train.env_steps": 200}


def comparable(runner):
    return [{k: v for k, v in r.items() if not k.startswith(TIMES)} for r in runner.history()]


@pytest.fixture(scope="module")
def run(micro_config, tmp_path_factory):
    """`run(changes)`: a finished micro run of iStar with adapters."""
    base, made = tmp_path_factory.mktemp("adapters"), {}

    def finish(**changes):
        key = tuple(sorted(changes.items()))
        if key not in made:
            made[key] = Runner(micro_config(LORA | {k.replace("__", "."): v for k, v in changes.items()}), base / str(len(made)))
            made[key].run()
        return made[key]

    return finish


def test_models_over_one_base_and_over_bases_of_their_own_are_the_same_run(run):
    shared, own = run(), run(lora__share_base=False)
    assert shared.learner.auxiliaries["prm"].model.base is shared.learner.model.base
    assert own.learner.auxiliaries["prm"].model.base is not own.learner.model.base
    assert comparable(shared) == comparable(own)
    assert comparable(shared)[-1]["policy/grad_norm"] > 0


def test_only_adapters_are_trained_and_they_say_the_same_merged(run, flat):
    learner = run().learner
    base, adapters = learner.actor
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(learner.policy.params)[0]}
    assert len(names) == 6 and all("_lora_" in name for name in names)
    merged = merge_adapters(base, adapters, learner.model.config.lora)
    np.testing.assert_array_equal(flat(base), flat(run(lora__share_base=False).learner.model.base))  # nothing trained it
    assert np.abs(flat(merged) - flat(base)).max() > 1e-4
    batch = learner.layout.pack(run().stages["train"].experience()[0].episodes)
    options = learner.layout.scoring(learner.model)
    whole = options | dict(graphdef=learner.parts.graphdef, base=None)
    np.testing.assert_allclose(score(adapters, batch, **options)[0], score(merged, batch, **whole)[0], atol=1e-5)
    assert comparable(run())[-1]["policy/sampler_gap"] < 1e-4  # the rollout plays the merged weights


def test_a_run_with_adapters_resumes_and_is_evaluated(run, micro_config, tmp_path, capsys):
    class Killed(Exception):
        pass

    def stop(runner, _):
        if runner.counters.iteration == 2:
            runner.save(wait=True)
            raise Killed

    with pytest.raises(Killed):
        Runner(micro_config(LORA), tmp_path / "killed", on_tick=stop).run()
    resumed = Runner(micro_config(LORA), tmp_path / "killed")
    resumed.run()
    assert comparable(resumed) == comparable(run())
    for which in ("policy", "prm"):
        evaluate_workdir(tmp_path / "killed", 16, None, which, 0)
    assert capsys.readouterr().out.count("success") == 2


def test_adapters_in_the_warm_start_sit_on_the_first_weights(run):
    runner = run(lora__sft=True, lora__dropout=0.1)
    assert runner.learner.start_model.base is runner.learner.model.base
    sft = [r["sft/loss"] for r in runner.history() if "sft/loss" in r]
    assert sft[-1] < sft[0]


def test_a_critic_and_an_estimator_over_adapters(spa_config, tmp_path):
    changes = LORA | {"exploration.tasks": 4, "estimator.epochs": 1, "train.env_steps": 60, "critic.backbone": "shared"}
    runner = Runner(spa_config(changes), tmp_path / "run")
    runner.run()
    learner = runner.learner
    assert set(learner.policy.params) == {"decoder", "scalar_head"} and learner.auxiliaries["estimator"].model.base is None
    assert learner.auxiliaries["estimator"].state is None  # nothing trains it any more
    assert isinstance(join(learner.model.base, learner.policy.params)["decoder"], tuple)
    assert decoder_of(learner.policy.params) is learner.actor[1]
