"""Options of credit methods: what is refused, with which words, and how methods are registered."""

import sys

import pytest

from stepreward.credit import Method, make, register


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("grop", {}, "there are: .*gigpo, grpo, .*istar"),
        ("grpo", {"esp": 1e-3}, "did you mean 'eps'"),
        ("grpo", {"eps": "small"}, "eps of 'grpo' must be of type float, not 'small'"),
        ("grpo", {"eps": True}, "eps of 'grpo' must be of type float, not True"),
        ("istar", {"prm_frozen": 1}, "prm_frozen of 'istar' must be of type bool, not 1"),
        ("rbt", {"bag_size": 2.0}, "bag_size of 'rbt' must be of type int, not 2.0"),
        ("grpo", {"singleton": "one"}, "'zero', 'raw'"),
        ("grpo", {"variant": "released"}, "no option 'variant'"),
        ("istar", {"variant": "release"}, "there are: paper, released"),
        ("istar", {"trajectory_reduce": "max"}, "trajectory_reduce of 'istar' must be one of 'sum', 'mean'"),
        ("istar", {"beta": 0.0}, "beta of 'istar' must be positive"),
        ("istar", {"alpha": -1.0}, "alpha of 'istar' must be at least 0"),
        ("istar", {"granularity": "token", "step_reward": "uniform"}, "granularity='step' only"),
        ("ppo", {"discount": 1.5}, r"discount of 'ppo' must lie in \[0, 1\]"),
        ("step_ppo", {"reward": "prm"}, "'outcome', 'env'"),
        ("ppo", {"observation": "keep"}, "observation of 'ppo' must be one of 'skip', 'decay', not 'keep'"),
        ("step_ppo", {"observation": "decay"}, "no option 'observation'"),
        ("spa", {"trace": -0.1}, r"trace of 'spa' must lie in \[0, 1\]"),
        ("spa", {"alpha": -1.0}, "alpha of 'spa' must be at least 0"),
        ("spa", {"beta": -1.0}, "beta of 'spa' must be at least 0"),
        ("spa", {"step_reward": "constant"}, "step_reward of 'spa' must be one of 'progress', 'shuffled', 'uniform'"),
        ("spa", {"step_weight": "steptool"}, "'none', 'released'"),
        ("spa", {"level": "turn"}, "level of 'spa' must be one of 'step', 'token'"),
        ("spa", {"baseline": "group", "level": "token"}, "set level='step'"),
        ("spa", {"variant": "release"}, "there are: every_step, paper, released"),
        ("spa", {"reward": "env"}, "no option 'reward'"),
        ("rbt", {"variant": "released"}, "no option 'variant'"),
        ("rbt", {"bag_size": -1}, "bag_size of 'rbt' must be at least 0"),
        ("rbt", {"bag_reward": "prm"}, "'outcome', 'env'"),
        ("rudder", {"residual": "first"}, "'none', 'last', 'uniform'"),
        ("rudder", {"every_step": -1.0}, "every_step of 'rudder' must be at least 0"),
        ("rudder", {"baseline": "none"}, "'critic', 'group'"),
        ("progrm", {"objective": "bce"}, "'mse', 'cross_entropy'"),
        ("agentprm", {"label_trace": 1.5}, r"label_trace of 'agentprm' must lie in \[0, 1\]"),
        ("agentprm", {"beta": -1.0}, "beta of 'agentprm' must be at least 0"),
        ("agentprm", {"residual": "first"}, "'none', 'last', 'uniform'"),
        ("agentprm_mc", {"labels_from": "td"}, "'mc', 'shaped', 'inverse'"),
        ("agentprm_mc", {"discount_from": "middle"}, "'end', 'start'"),
        ("agentprm_mc", {"label_discount": 1.5}, r"label_discount of 'agentprm_mc' must lie in \[0, 1\]"),
        ("gigpo", {"scale": "centre"}, "scale of 'gigpo' must be one of 'none', 'std'"),
        ("gigpo", {"discount": 1.5}, r"discount of 'gigpo' must lie in \[0, 1\]"),
        ("gigpo", {"weight": -1.0}, "weight of 'gigpo' must be at least 0"),
        ("gigpo", {"similarity": 0.0}, r"similarity of 'gigpo' must lie in \(0, 1\]"),
        ("gigpo", {"variant": "release"}, "there are: paper, released"),
        ("vineppo", {"k": 0}, "k of 'vineppo' must be at least 1"),
        ("vineppo", {"values_at": "start"}, "values_at of 'vineppo' must be one of 'all', 'cuts'"),
        ("spo", {"form": "graph"}, "form of 'spo' must be one of 'chain', 'tree'"),
        ("spo", {"below": 0.0}, r"below of 'spo' must lie in \(0, 1\]"),
        ("spo", {"tokens_per_cut": 0}, "tokens_per_cut of 'spo' must be at least 1"),
        ("treerpo", {"branching": ()}, "branching of 'treerpo' must hold whole numbers of at least 1, one for each depth"),
        ("treerpo", {"branching": (2, 0)}, "branching of 'treerpo' must hold"),
        ("treerpo", {"branching": 4}, "branching of 'treerpo' must be of type tuple"),
        ("treerpo", {"segment_steps": 0}, "segment_steps of 'treerpo' must be at least 1"),
        ("treerpo", {"tau": -0.1}, "tau of 'treerpo' must be at least 0"),
        ("treerpo", {"ddof": 2}, "ddof of 'treerpo' must be one of 0, 1"),
        ("treerpo", {"scale": "none", "renormalise": True}, "set one of the two"),
        ("arpo", {"advantage": "mean"}, "advantage of 'arpo' must be one of 'soft', 'hard'"),
        ("arpo", {"p": 1.5}, r"p of 'arpo' must lie in \[0, 1\]"),
        ("arpo", {"beam": 1}, "beam of 'arpo' must be at least 2"),
        ("hgpo", {"history": -1}, "history of 'hgpo' must be at least 0"),
        ("hgpo", {"zero_levels": "skip"}, "zero_levels of 'hgpo' must be one of 'drop', 'keep'"),
        ("turn_return", {"baseline": "turn"}, "must be one of 'index', 'rtg_loo', 'index_mean', 'pooled'"),
        ("turn_return", {"scale": "std"}, "goes with baseline='index_mean' or 'pooled', not 'index'"),
        ("mt_grpo", {"without_result": "zero"}, "without_result of 'mt_grpo' must be one of 'sum', 'before'"),
        ("igpo", {"discount": 1.5}, r"discount of 'igpo' must lie in \[0, 1\]"),
        ("igpo", {"gain": "ratio"}, "'log_prob_diff', 'prob_diff'"),
        ("igpo", {"variant": "released"}, "there are: paper"),
        ("igpo", {"weight": float("nan")}, "weight of 'igpo' must be at least 0"),
        ("rlvmr", {"alpha": 2.0}, r"alpha of 'rlvmr' must lie in \[0, 1\]"),
        ("rlvmr", {"scope": "episode"}, "scope of 'rlvmr' must be one of 'group', 'batch'"),
        ("ppr", {"final": "zero"}, "final of 'ppr' must be one of 'outcome', 'renorm'"),
        ("ppr", {"baseline": "none"}, "baseline of 'ppr' must be one of 'critic', 'group'"),
        ("salt", {"window": 0}, "window of 'salt' must be at least 1"),
        ("salt", {"key": "text"}, "'state_action', 'prefix', 'window'"),
        ("stepagent", {"form": "wgan"}, "form of 'stepagent' must be one of 'gail', 'airl', 'log', not 'wgan'"),
        ("stepagent", {"weight": -1.0}, "weight of 'stepagent' must be at least 0"),
        ("stepagent", {"outcome_weight": float("nan")}, "outcome_weight of 'stepagent' must be at least 0"),
        ("reward_phasing", {"phase": 1.5}, r"phase of 'reward_phasing' must lie in \[0, 1\]"),
        ("reward_phasing", {"fade_iterations": -1}, "fade_iterations of 'reward_phasing' must be at least 0"),
        ("reward_phasing", {"reward": "prm"}, "reward of 'reward_phasing' must be one of 'outcome', 'env'"),
        ("temporal_phasing", {"share": -0.1}, r"share of 'temporal_phasing' must lie in \[0, 1\]"),
        ("temporal_phasing", {"learner": "spa"}, "learner of 'temporal_phasing' must be one of 'ppo', 'grpo'"),
        ("temporal_phasing", {"learner": "rloo", "kl_in_reward": True}, "set learner='ppo', or policy.kl_reward_coef=0"),
        ("hcapo", {"temperature": 0.0}, "temperature of 'hcapo' must be positive"),
        ("hcapo", {"clip_low": 2.0}, "clip_high of 'hcapo' must be at least clip_low=2.0"),
        ("hcapo", {"ddof": 2}, "ddof of 'hcapo' must be one of 0, 1"),
        ("progress_advantage", {"tokens": "median"}, "tokens of 'progress_advantage' must be one of 'mean', 'sum', 'last'"),
    ],
)
def test_bad_options_are_one_clear_error(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="'grpo' is registered already"):
        register("grpo")(Method)


def test_every_file_of_the_folder_registers_its_methods(root):
    files = {file.stem for file in (root / "stepreward" / "credit").glob("[a-z]*.py")}
    assert {f"stepreward.credit.{name}" for name in files} <= set(sys.modules) and len(files) > 5
