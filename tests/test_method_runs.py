"""Every credit method runs from the warm start to an evaluation, by its name and with the settings that its signals need."""

import math
import sys

import pytest

from stepreward import credit
from stepreward.config import override
from stepreward.training.train import Runner

# One iteration; what does not depend on the method is as short as it may be.
QUICK = {"sft.updates": 2, "sft.log_every": 2, "eval.episodes": 4, "train.env_steps": 1, "exploration.tasks": 2, "estimator.held_out": 0.5}


@pytest.fixture(scope="module")
def method_runs(root):
    sys.path.insert(0, str(root / "experiments"))
    try:
        import method_runs
    finally:
        sys.path.remove(str(root / "experiments"))
    return method_runs


@pytest.fixture(scope="module")
def trained(micro_config, tmp_path_factory):
    """The workdir of a finished run, for methods that read a frozen pair of policies."""
    folder = tmp_path_factory.mktemp("pair") / "run"
    Runner(micro_config(QUICK | {"credit.method": "rloo"}), folder).run()
    return str(folder)


@pytest.mark.parametrize("name", credit.names())
def test_a_method_runs_by_its_name(name, method_runs, micro, tmp_path, request):
    method = credit.make(name)
    pair = request.getfixturevalue("trained") if method.requires & method_runs.NEEDS_A_RUN else ""
    config = micro(method_runs.experiment(method), QUICK | {"credit.method": name})
    for setting in method_runs.settings(method, pair):
        override(config, *setting.split("=", 1))
    runner = Runner(config, tmp_path / "run")
    runner.run()
    records = runner.history()
    (last,) = [record for record in records if record["stage"] == "train"]
    assert last["env_steps"] >= 1 and "eval/success" in records[-1] | last
    if last.get("filter/kept_groups", 1):  # a filter may drop every group of a policy that never succeeds
        assert all(math.isfinite(last[name]) for name in ("policy/loss", "policy/grad_norm", "credit/advantage_max"))
    assert not last["rollout/failed_episodes"]
