"""Temporal phasing: where the expert hands over, what it costs, its schedules, and runs that resume."""

import jax
import numpy as np
import pytest
from references import pack, random_episodes
from resuming import assert_same_after_a_kill, measured, stop_after
from test_collect import KEY, chat, params  # noqa: F401  (fixtures)
from test_play import GROUPED, on_sokoban

from stepreward.credit import make
from stepreward.credit.schedules import Standing
from stepreward.envs.sokoban.env import SokobanEnv
from stepreward.rollout import strategies
from stepreward.rollout.strategies.handover import handover_turn
from stepreward.training import setup
from stepreward.training.train import Runner

SMALL = {
    "credit.method": "temporal_phasing", "sft.updates": 20, "sft.log_every": 20, "eval.every": 99, "eval.episodes": 2,
    "eval.final_episodes": 0, "rollout.groups": 2, "rollout.group_size": 2, "train.env_steps": 1,
}  # fmt: skip

# --- The strategy ---


@pytest.mark.parametrize(
    "share, steps, turn", [(0.0, 5, 0), (1.0, 5, 4), (0.5, 5, 2), (0.6, 5, 3), (0.59, 5, 2), (1.0, 1, 0), (0.99, 100, 99)]
)
def test_the_first_step_of_the_policy(share, steps, turn):
    assert handover_turn(share, steps) == handover_turn(float(np.float32(share)), steps) == turn


@pytest.fixture
def easy(chat):  # noqa: F811
    """Rooms whose expert needs fewer steps than an episode may have."""

    def make(context="step"):
        collector = on_sokoban(chat, context)
        collector.max_steps = 15
        return collector

    return make


@pytest.mark.parametrize("context", ["step", "episode"])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_expert_plays_first(easy, params, context, share):  # noqa: F811
    collector = easy(context)
    player = collector.player(params)
    paths = [player.expert([task])[0] for task in GROUPED[::3]]
    rollout = strategies.make("handover", share=share)(player, GROUPED, KEY)
    turns = [handover_turn(share, len(path.steps)) for path in paths for _ in range(3)]
    assert min(turns) > 0 and [episode.prefix for episode in rollout.episodes] == turns
    for index, (episode, turn) in enumerate(zip(rollout.episodes, turns)):
        path = paths[index // 3]
        assert [step.action for step in episode.steps[:turn]] == [step.action for step in path.steps[:turn]]
        assert [step.sampled for step in episode.steps] == [False] * turn + [True] * (len(episode.steps) - turn)
        assert len(episode.steps) > turn and episode.failure is None and all(step.snapshot is None for step in episode.steps)
    sampled = sum(len(episode.steps) - turn for episode, turn in zip(rollout.episodes, turns))
    assert rollout.cost[:2] == (sampled, sum(len(path.steps) for path in paths)) and rollout.branch_steps == 0
    assert rollout.counts == {"expert_steps": sum(turns), "expert_failures": 0} and rollout.signals == {}


def test_without_a_share_it_is_a_chain(easy, params):  # noqa: F811
    collector = easy()
    found = strategies.make("handover", share=0.0)(collector.player(params), GROUPED, KEY)
    chain = strategies.make("chain")(collector.player(params), GROUPED, KEY)
    for one, other in zip(found.episodes, chain.episodes, strict=True):
        assert [step.action_tokens.tolist() for step in one.steps] == [step.action_tokens.tolist() for step in other.steps]
    assert found.cost == chain.cost and found.counts == {"expert_steps": 0, "expert_failures": 0}


def test_where_the_expert_fails_the_policy_plays_from_the_beginning(easy, params, monkeypatch):  # noqa: F811
    expert, asked = SokobanEnv.expert, []
    monkeypatch.setattr(SokobanEnv, "expert", lambda self, rng=None: asked.append(1) or (None if len(asked) == 1 else expert(self, rng)))
    rollout = strategies.make("handover", share=0.5)(easy().player(params), GROUPED, KEY)
    assert [episode.prefix > 0 for episode in rollout.episodes] == [False] * 3 + [True] * 3
    assert all(episode.failure is None for episode in rollout.episodes) and rollout.counts["expert_failures"] == 1


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_one_clear_error(share):
    with pytest.raises(ValueError, match=r"share=.* is the expert's share of the steps: it must lie in \[0, 1\]"):
        strategies.make("handover", share=share)


# --- The method ---


def test_its_advantage_is_that_of_its_learner():
    batch = pack(random_episodes(np.random.default_rng(3)))
    same = lambda method, other: np.testing.assert_array_equal(method.credit(batch).advantage, other.credit(batch).advantage)
    same(make("temporal_phasing"), make("ppo"))
    same(make("temporal_phasing", discount=0.9, reward="env"), make("ppo", discount=0.9, reward="env"))
    same(make("temporal_phasing", learner="rloo"), make("rloo"))
    assert make("temporal_phasing").requires == {"value"} and not make("temporal_phasing").needs_group
    assert not make("temporal_phasing", learner="rloo").requires and make("temporal_phasing", learner="rloo").needs_group


def test_the_share_follows_its_schedule():
    shares = lambda method, *standings: [method.scheduled_strategy_options(standing)["share"] for standing in standings]
    at = [Standing(0), Standing(50), Standing(100), Standing(1000)]
    assert shares(make("temporal_phasing", variant="paper"), *at) == [1.0, 0.5, 0.0, 0.0]
    assert shares(make("temporal_phasing", share=0.5, fade_iterations=50), *at) == [0.5, 0.0, 0.0, 0.0]
    assert shares(make("temporal_phasing", share=0.25), *at) == [0.25] * 4
    scheduled = make("temporal_phasing", variant="paper", schedules={"share": "success(1, 0, 0, 1, 2)"})
    assert shares(scheduled, Standing(), Standing(3, (0.0, 0.5, 1.0))) == [1.0, 0.25]
    assert make("rloo").scheduled_strategy_options(Standing()) == {}


def test_reward_phasing_follows_its_schedule():
    method = make("reward_phasing", variant="paper", form="airl", whiten=False)
    batch = pack(random_episodes(np.random.default_rng(3)))
    for iteration, share in ((0, 1.0), (50, 0.5), (100, 0.0)):
        values = method.scheduled_values(Standing(iteration))
        assert values == {"scheduled_phase": np.float32(share)}
        found = jax.jit(method.credit)(batch.with_signals(**values))
        expected = make("reward_phasing", form="airl", whiten=False, phase=share).credit(batch)
        np.testing.assert_allclose(found.step_reward, expected.step_reward, atol=1e-6)
        assert found.metrics["coefficient_phase"] == np.float32(share)
    other = make("reward_phasing", variant="paper", schedules={"phase": "linear(0.5, 0.1, 4)"})
    assert other.scheduled_values(Standing(2))["scheduled_phase"] == pytest.approx(0.3)


# --- Runs ---


@pytest.mark.parametrize("schedule", ["linear(1, 0, 3)", "success(1, 0, 0, 1, 2)"])
def test_a_run_hands_over_earlier_and_resumes_exactly(micro_config, tmp_path, schedule):
    config = SMALL | {"credit.schedules.share": schedule, "train.env_steps": 70, "checkpoint.every": 1}
    whole = Runner(micro_config(config), tmp_path / "whole")
    whole.run()
    lines = measured(tmp_path / "whole", "train")
    successes = [line["rollout/success"] for line in lines]
    if schedule.startswith("linear"):
        expected = [max(0.0, 1 - i / 3) for i in range(len(lines))]
        assert [line["rollout/expert_steps"] > 0 for line in lines] == [share > 0 for share in expected]
    else:
        expected = [1.0] + [1 - np.mean(successes[max(0, i - 2) : i]) for i in range(1, len(lines))]
    assert len(lines) > 3
    np.testing.assert_allclose([line["credit/coefficient_share"] for line in lines], expected, atol=1e-6)
    assert lines[0]["rollout/expert_steps"] > 0 and lines[0]["rollout/replayed_steps"] > 0 and lines[0]["rollout/branch_steps"] == 0
    cut = Runner(micro_config(config), tmp_path / "cut")
    stop_after(cut, 2)
    Runner(micro_config(config), tmp_path / "cut").run()
    assert measured(tmp_path / "cut", "train") == lines


def test_a_killed_run_goes_on_bit_for_bit(micro_config, root, tmp_path):
    config = micro_config(SMALL | {"credit.options.fade_iterations": 4, "train.env_steps": 70, "checkpoint.every": 1})
    assert_same_after_a_kill(config, tmp_path, root)


def test_the_expert_s_steps_are_not_trained_on(micro_config, tmp_path):
    config = SMALL | {"credit.options.learner": "rloo", "rollout.context": "episode", "rollout.max_row_tokens": 140}
    runner = Runner(micro_config(config), tmp_path / "run")
    seen, credit = [], runner.learner.credit
    runner.learner.credit = lambda batch, episodes, *more: seen.append((batch, episodes)) or credit(batch, episodes, *more)
    runner.run()
    ((batch, episodes),) = seen
    acted = set(batch.step_id[batch.action_mask].tolist())
    for e, episode in enumerate(episodes):
        for t, step in enumerate(episode.steps):
            assert (e * batch.max_steps + t in acted) == step.sampled
    assert not all(step.sampled for episode in episodes for step in episode.steps) and "critic" not in runner.learner.auxiliaries


def test_the_strategy_has_the_value_of_the_iteration(micro_config):
    config = micro_config(SMALL | {"credit.schedules.share": "linear(1, 0, 4)"})
    method = setup.make_method(config)
    assert [setup.make_strategy(config, method, Standing(i)).share for i in (0, 1, 4)] == [1.0, 0.75, 0.0]
    assert setup.make_strategy(config, method).share == 1.0


def test_an_environment_without_an_expert_is_one_clear_error(micro_config, tmp_path, monkeypatch):
    make = SokobanEnv.__init__

    def without(self, *arguments, **settings):
        make(self, *arguments, **settings)
        self.capabilities = self.capabilities - {"expert"}

    monkeypatch.setattr(SokobanEnv, "__init__", without)
    with pytest.raises(ValueError, match="credit.method='temporal_phasing' needs 'expert', which the environment .* does not offer"):
        Runner(micro_config(SMALL | {"sft.updates": 0}), tmp_path / "run")


@pytest.mark.parametrize("changes, words", [
    ({"credit.options.share": 1.5}, r"share of 'temporal_phasing' must lie in \[0, 1\], not 1.5"),
    ({"credit.schedules.share": "linear(1, -1, 4)"}, r"share of 'temporal_phasing' must lie in \[0, 1\], not -1.0"),
    ({"train.mode": "offline", "exploration.rollouts": 2}, "rollout strategy 'handover': set train.mode=online"),
])  # fmt: skip
def test_bad_settings_are_one_clear_error(micro_config, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        Runner(micro_config(SMALL | changes), tmp_path / "run")
