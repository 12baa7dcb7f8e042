"""The discriminator: its loss and rewards, its gradient, its examples, that it learns, and how it fares in a run."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import VOCABULARY
from resuming import assert_same_after_a_kill

from stepreward import credit, kernels, parallel
from stepreward.credit.base import last_token, step_sum
from stepreward.envs import sokoban
from stepreward.envs.sokoban.env import SokobanEnv
from stepreward.metrics import read_metrics
from stepreward.models.heads import head_outputs
from stepreward.rollout.environments import EnvironmentPool
from stepreward.rollout.episode import Episode, Step, Task
from stepreward.rollout.packing import pack
from stepreward.training.auxiliaries.discriminator import draw
from stepreward.training.auxiliaries.estimator import estimate
from stepreward.training.auxiliaries.update import StepOutputs, auxiliary_step
from stepreward.training.demonstrating import load_demonstrations
from stepreward.training.state import create
from stepreward.training.train import Runner

METHOD = credit.make("stepagent")
SMALL = {
    "credit.method": "stepagent", "sft.updates": 20, "sft.log_every": 20, "eval.every": 99, "eval.episodes": 2,
    "eval.final_episodes": 0, "train.env_steps": 1, "discriminator.minibatch_episodes": 8,
}  # fmt: skip

# --- Kernels ---


def test_the_loss_of_numbers_that_can_be_computed_by_hand():
    """D = 3/4 at a step of the expert and at one of the agent: (log 4/3 + log 4) / 2."""
    logits = jnp.array([[np.log(3.0), 7.0], [np.log(3.0), 7.0]])
    mask, expert = jnp.array([[True, False]] * 2), jnp.array([True, False])
    loss, metrics = kernels.discriminator_loss(logits, expert, mask)
    np.testing.assert_allclose(loss, (np.log(4 / 3) + np.log(4)) / 2, rtol=1e-6)
    assert {name: float(x) for name, x in metrics.items()} == {
        "steps_expert": 1, "accuracy_expert": 1, "steps_agent": 1, "accuracy_agent": 0,
    }  # fmt: skip
    gradient = jax.grad(lambda x: kernels.discriminator_loss(x, expert, mask)[0])(logits)
    np.testing.assert_allclose(gradient, [[-1 / 8, 0], [3 / 8, 0]], rtol=1e-6)  # (D − y) / 2


def test_the_loss_is_that_of_a_plain_loop():
    rng = np.random.default_rng(0)
    logits, mask, expert = rng.normal(size=(5, 4)), rng.random((5, 4)) < 0.7, rng.random(5) < 0.5
    losses, right = [], {True: [], False: []}
    for e, t in zip(*np.nonzero(mask)):
        p = 1 / (1 + np.exp(-logits[e, t]))
        losses.append(-np.log(p) if expert[e] else -np.log(1 - p))
        right[bool(expert[e])].append((p > 0.5) == expert[e])
    loss, metrics = kernels.discriminator_loss(logits, expert, mask)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose([metrics["accuracy_expert"], metrics["accuracy_agent"]], [np.mean(right[True]), np.mean(right[False])])


def test_who_knows_nothing_loses_log_2_and_is_half_right():
    loss, metrics = kernels.discriminator_loss(jnp.zeros((2, 3)), jnp.array([True, False]), jnp.ones((2, 3), bool))
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
    assert metrics["accuracy_expert"] == metrics["accuracy_agent"] == 0.5


def test_rewards_by_their_definition():
    logits = np.linspace(-3, 3, 13)
    probability = 1 / (1 + np.exp(-logits))
    found = {form: np.asarray(kernels.discriminator_reward(logits, form)) for form in ("gail", "airl", "log")}
    np.testing.assert_allclose(found["gail"], -np.log(1 - probability), rtol=1e-5)
    np.testing.assert_allclose(found["airl"], logits, rtol=1e-6)
    np.testing.assert_allclose(found["log"], np.log(probability), rtol=1e-5)
    np.testing.assert_allclose(found["gail"] + found["log"], found["airl"], atol=1e-6)
    np.testing.assert_allclose(kernels.discriminator_reward([-200.0, 200.0], "gail"), [0, 200], atol=1e-6)  # no overflow
    with pytest.raises(ValueError, match="'gail', 'airl', 'log', not 'wgan'"):
        kernels.discriminator_reward(logits, "wgan")


# --- The gradient ---


def labelled(batch):
    return batch.with_signals(from_expert=np.arange(batch.num_episodes) % 2 == 0)


def whole_loss(params, graphdef, batch):
    """The loss through the model in one piece."""
    output = head_outputs(
        graphdef, params, batch.tokens, batch.positions, batch.segment_ids, action_mask_RxL=batch.action_mask, before=False
    )
    return METHOD.discriminator_loss(step_sum(jnp.where(last_token(batch), output, 0.0), batch), batch)[0]


def step(state, graphdef, batch, optimizer, chunk_rows=8, **options):
    what = dict(name="discriminator", outputs=StepOutputs(), method=METHOD)
    return auxiliary_step(state, batch, graphdef=graphdef, optimizer=optimizer, chunk_rows=chunk_rows, **what, **options)


def test_chunks_of_any_size_give_the_gradient_of_the_whole_loss(headed, make_batch, flat, assert_same):
    graphdef, params = headed
    batch = jax.tree.map(jnp.asarray, labelled(make_batch(failed=(2,))))
    value, gradient = jax.value_and_grad(whole_loss)(params, graphdef, batch)
    assert np.linalg.norm(flat(gradient["decoder"])) > 1e-4 and np.linalg.norm(flat(gradient["scalar_head"])) > 1e-3
    sgd = optax.sgd(1.0)  # parameters move by minus the gradient
    for chunk_rows, options in ((4, {}), (24, {}), (4, {"max_actions": 2})):
        state, metrics = step(create(params, sgd), graphdef, batch, sgd, chunk_rows, **options)
        assert_same(flat(params) - flat(state.params), flat(gradient))
        np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)


# --- Learning ---


def played(rng, right, count):
    """Episodes of three steps; the right answer to an observation is the observation, a bad agent's is another token."""
    episodes = []
    for index in range(count):
        episode = Episode(Task(index, "train", index))
        for _ in range(3):
            seen = rng.integers(2, VOCABULARY)
            said = seen if right else 2 + (seen - 2 + rng.integers(1, VOCABULARY - 2)) % (VOCABULARY - 2)
            zeros = np.zeros(1, np.float32)
            shown = np.array([1, seen], np.int32)
            episode.steps.append(Step(shown, np.array([said], np.int32), zeros, zeros, "", "", "", 0.0, True, ""))
        episodes.append(episode)
    return episodes


def test_it_separates_an_expert_from_a_bad_agent(headed):
    """Each token alone is as likely from either; only the answer and the observation together tell."""
    graphdef, params = headed
    rng, adam = np.random.default_rng(0), optax.adam(1e-2)
    packed = lambda: pack(
        [*played(rng, True, 32), *played(rng, False, 32)], context="step", max_steps=3, row_length=4, row_multiple=192, pad_id=0
    ).with_signals(from_expert=np.arange(64) < 32)
    state = create(params, adam)
    for _ in range(100):
        state, _ = step(state, graphdef, packed(), adam, chunk_rows=192)
    held_out = packed()
    output = estimate(state.params, held_out, graphdef=graphdef, chunk_rows=192)
    loss, metrics = METHOD.discriminator_loss(output, held_out)
    assert metrics["accuracy_expert"] > 0.9 and metrics["accuracy_agent"] > 0.9 and loss < 0.4
    reward = np.asarray(kernels.discriminator_reward(output, "airl"))
    assert reward[:32].mean() > 1 and reward[32:].mean() < -1


# --- Its examples ---


def test_as_many_steps_are_drawn_as_are_asked_for():
    demonstrations = played(np.random.default_rng(1), True, 4)  # three steps each
    for steps in (0, 1, 3, 7, 12, 20):
        found = draw(demonstrations, steps, np.random.default_rng(2))
        assert sum(len(episode.steps) for episode in found) == steps
        whole = [episode.task.seed for episode in found]
        assert len(set(whole[:4])) == len(whole[:4])  # no episode comes again before all of them have come
    assert [len(episode.steps) for episode in demonstrations] == [3] * 4


@pytest.fixture(scope="module")
def begun(micro_config, tmp_path_factory):
    runner = Runner(micro_config(SMALL), tmp_path_factory.mktemp("begun") / "run")
    runner.begin_reinforcement()
    yield runner
    runner.close()


def test_failed_episodes_and_steps_of_the_expert_are_no_examples(begun):
    discriminator = begun.learner.auxiliaries["discriminator"]
    rollout, _, _ = begun.stages["train"].experience()
    episodes = [dataclasses.replace(episode, steps=list(episode.steps)) for episode in rollout.episodes]
    episodes[0].failure = "it broke"
    episodes[1].steps[0] = dataclasses.replace(episodes[1].steps[0], sampled=False)
    batch = begun.learner.layout.pack(episodes)
    examples = discriminator.examples(batch, episodes, np.random.default_rng(0))
    expert_E = examples.signals["from_expert"]
    steps = sum(len(episode.steps) for episode in episodes[1:]) - 1
    assert (~expert_E).sum() == len(episodes) - 1
    mask, outputs = examples.step_mask, np.zeros(examples.step_mask.shape, np.float32)
    _, metrics = METHOD.discriminator_loss(outputs, examples)
    assert metrics["steps_agent"] == metrics["steps_expert"] == steps == mask[expert_E].sum()


def test_a_fresh_one_knows_nothing_and_its_signal_reaches_the_method(begun):
    rollout, metrics, _ = begun.stages["train"].experience()[0], {}, None
    batch = begun.learner.score(begun.pack(rollout), metrics)
    assert batch.signals["discriminator_logit"].shape == batch.step_mask.shape and not batch.signals["discriminator_logit"].any()


# --- Runs ---


@pytest.mark.parametrize("method", ["stepagent", "reward_phasing"])
def test_a_killed_run_goes_on_bit_for_bit(micro_config, root, tmp_path, method):
    changes = {"train.env_steps": 300, "checkpoint.every": 1, "lora.rank": 2, "lora.dropout": 0.1, "credit.method": method}
    config = micro_config(SMALL | changes)
    whole = assert_same_after_a_kill(config, tmp_path, root)
    lines = [record for record in read_metrics(whole) if record["stage"] == "train"]
    assert len(lines) > 2
    for line in lines:
        assert line["discriminator/loss"] > 0 and 0 <= line["discriminator/accuracy_expert"] <= 1
        assert 0 <= line["discriminator/accuracy_agent"] <= 1 and "discriminator/steps_expert" not in line


def test_a_conversation_is_a_row_too(micro_config, tmp_path):
    changes = {"rollout.context": "episode", "rollout.max_row_tokens": 140, "train.pack_rows": True, "credit.method": "reward_phasing"}
    runner = Runner(micro_config(SMALL | changes | {"train.env_steps": 150}), tmp_path / "run")
    runner.run()
    lines = [record for record in runner.history() if record["stage"] == "train"]
    assert len(lines) > 1 and all(np.isfinite(line["discriminator/loss"]) for line in lines)
    assert [line["credit/coefficient_phase"] for line in lines] == pytest.approx([1 - i / 100 for i in range(len(lines))])


def test_without_imitation_demonstrations_are_played_all_the_same(micro_config, tmp_path):
    runner = Runner(micro_config(SMALL | {"sft.updates": 0}), tmp_path / "run")
    try:
        found = runner.learner.auxiliaries["discriminator"].demonstrations
        assert len(found) == len(runner.parts.demonstrations) > 50 and all(episode.success for episode in found)
    finally:
        runner.close()


def test_a_published_model_without_imitation_has_them_too(micro_config, tmp_path):
    config = micro_config({"sft.updates": 0, "sft.episodes": 4, "model.path": "somewhere"})
    pool = EnvironmentPool(sokoban.make("tiny", max_steps=8))
    assert load_demonstrations(config, pool, tmp_path / "demonstrations") == []
    assert len(load_demonstrations(config, pool, tmp_path / "demonstrations", "the discriminator")) == 4


@pytest.mark.parametrize("updates", [0, 20])
@pytest.mark.parametrize("method", ["stepagent", "reward_phasing"])
def test_an_environment_without_an_expert_is_one_clear_error(micro_config, tmp_path, monkeypatch, method, updates):
    make = SokobanEnv.__init__

    def without(self, *arguments, **settings):
        make(self, *arguments, **settings)
        self.capabilities = self.capabilities - {"expert"}

    monkeypatch.setattr(SokobanEnv, "__init__", without)
    words = f"the discriminator of credit.method='{method}' learns from demonstrations, and the environment .* has no expert: give it"
    with pytest.raises(ValueError, match=words) as caught:
        Runner(micro_config(SMALL | {"credit.method": method, "sft.updates": updates}), tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key, value, words", [
    ("head", "conv", "discriminator.head='conv' is not one of linear, mlp"),
    ("epochs", 0, "discriminator.epochs=0 must be at least 1"),
    ("minibatch_episodes", 0, "discriminator.minibatch_episodes=0 must be at least 1"),
])  # fmt: skip
def test_bad_keys_are_one_clear_error(micro_config, tmp_path, key, value, words):
    with pytest.raises(ValueError, match=words):
        Runner(micro_config(SMALL | {f"discriminator.{key}": value}), tmp_path / "run")


def test_a_rate_of_0_is_warned_of(micro_config, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        Runner(micro_config(SMALL | {"discriminator.learning_rate": 0.0}), tmp_path / "run").close()
    assert "discriminator.learning_rate=0: these updates change no parameters" in caplog.text


def test_the_plan_lists_its_programs(micro_config):
    from stepreward.tpu import plan

    found = {p.name: p for _, p, _ in plan.programs(micro_config(SMALL), parallel.make_mesh(1, 1, 1))}
    assert {"discriminator/score", "discriminator/update"} <= set(found)
    assert found["discriminator/update"].args[1].signals["from_expert"].shape == (8,)
    for name in ("discriminator/score", "discriminator/update"):
        found[name].lower()
