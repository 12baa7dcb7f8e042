"""Reference answers: how they are written, what they score before every turn, and that nothing else changes."""

import dataclasses
import json
from typing import ClassVar

import code_word
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_engine import CONFIG, Talk, make_engine, prompts, recompute, row_keys

from stepreward import credit, parallel
from stepreward.batch import Batch
from stepreward.credit import base as credit_base
from stepreward.envs.protocol import REFERENCE
from stepreward.errors import UserError
from stepreward.models import decoder, presets
from stepreward.models.log_probs import token_log_probs
from stepreward.models.tokenizer import train_symbol_tokenizer
from stepreward.rollout.chat import Chat
from stepreward.rollout.checked import checked
from stepreward.rollout.engine import Engine
from stepreward.rollout.environments import EnvironmentPool
from stepreward.rollout.episode import Start, Task
from stepreward.rollout.play import Collector
from stepreward.rollout.reference import Spoken, answer_log_probs, spoken, unscored
from stepreward.rollout.sampling import Sampling
from stepreward.training import setup
from stepreward.training.exploration import SCORED
from stepreward.training.train import Runner

KEY = jax.random.key(5)


# --- The engine ---


def scored(engine, params, said, texts, *, keep=None):
    """Plays the turns of `said`, scoring `texts[turn][row]` in each; returns the talk and, per turn, `(row, conversation, value)`."""
    talk, rows, found = Talk(len(said[0])), list(range(len(said[0]))), []
    state = engine.start(len(rows))
    for turn, words in enumerate(said):
        if keep is not None and turn == keep[0]:
            state, rows = engine.select(state, np.array(keep[1])), list(keep[1])
        for row in rows:
            talk.say(row, words[row])
        new = [talk.tokens[row][state.length[i] :] for i, row in enumerate(rows)]
        length = state.length + np.array([len(n) for n in new])
        before = [talk.tokens[row].copy() for row in rows]
        state, answer = engine.turn(params, state, new, row_keys(turn, rows))
        caches = jax.device_get(state.caches)
        texts_of = [texts[turn][row] for row in rows]
        values = engine.mean_log_prob(params, state, length, np.array([tokens[-1] for tokens in before]), texts_of)
        for was, now in zip(jax.tree.leaves(caches), jax.tree.leaves(state.caches)):
            np.testing.assert_array_equal(was, now)
        found += list(zip(rows, before, texts_of, values))
        talk.hear(rows, answer)
    return talk, found


def expected(params, found, config=CONFIG):
    """The same values by one forward pass over whole conversations."""
    talk = Talk(len(found))
    for row, (_, conversation, text, _) in enumerate(found):
        talk.say(row, [*conversation, *text.tokens])
    log_prob = recompute(params, talk, 1.0, config)[0]
    ends = [len(tokens) for tokens in talk.tokens]
    return [row[end - text.scored : end].mean() for row, end, (_, _, text, _) in zip(log_prob, ends, found)]


def random_texts(turns, rows, seed=3):
    draw = np.random.default_rng(seed)

    def text():
        tokens = draw.integers(4, 13, draw.integers(1, 7)).astype(np.int32)
        return None if draw.random() < 0.2 else Spoken(tokens, int(draw.integers(1, len(tokens) + 1)))

    return [[text() for _ in range(rows)] for _ in range(turns)]


def test_scores_are_those_of_a_full_pass_over_ragged_turns():
    config = dataclasses.replace(CONFIG, num_layers=2)
    params = decoder.build(config, 0)[1]
    engine = make_engine(max_length=130, temperature=0.7, top_k=3, config=config)  # neither changes the score; the cache grows
    said, texts = prompts(13, 5), random_texts(13, 5)
    talk, found = scored(engine, params, said, texts, keep=(5, (3, 0)))
    assert max(map(len, talk.tokens)) > engine.slot_buckets[0] and any(text is None for _, _, text, _ in found)
    assert all(np.isnan(value) == (text is None) for _, _, text, value in found)
    given = [one for one in found if one[2] is not None]
    np.testing.assert_allclose([value for *_, value in given], expected(params, given, config), atol=1e-5)


def test_scoring_changes_nothing_that_is_drawn():
    params, said = decoder.build(CONFIG, 0)[1], prompts(5, 3)
    with_scores, _ = scored(make_engine(), params, said, random_texts(5, 3))
    without, _ = scored(make_engine(), params, said, [[None] * 3] * 5)
    for row in range(3):
        np.testing.assert_array_equal(with_scores.tokens[row], without.tokens[row])
        np.testing.assert_array_equal(with_scores.log_prob[row], without.log_prob[row])


def test_scoring_compiles_once_for_a_shape():
    engine, params = make_engine(sharding=parallel.row_sharding(parallel.make_mesh(1, 1, 1))), decoder.build(CONFIG, 0)[1]
    scored(engine, params, prompts(6, 3), random_texts(6, 3))
    assert engine._said._cache_size() == len(engine.slot_buckets) == 1


def test_what_fits():
    engine = make_engine(max_length=20, buckets=(8,))
    text = Spoken(np.zeros(8, np.int32), 2)
    assert engine.fits(text, 12) and not engine.fits(text, 13)  # the row
    assert not engine.fits(Spoken(np.zeros(9, np.int32), 2), 0)  # a prompt
    assert not engine.fits(Spoken(np.zeros(3, np.int32), 0), 0)  # nothing to score


def test_adapters_are_scored_as_they_are_trained():
    from test_adapter_play import EXACT
    from test_adapter_play import make_engine as adapted

    from stepreward.models.adapters import split_adapters

    base, adapters = split_adapters(decoder.initial_params(EXACT, jax.random.key(0)))
    adapters = jax.tree.map(lambda x: x + 0.1, adapters)
    engine, rows = adapted(EXACT), np.random.default_rng(0).integers(1, 32, (2, 6)).astype(np.int32)
    prepared = engine.prepare((base, adapters))
    state, _ = engine.turn(prepared, engine.start(2), list(rows), row_keys(0, [0, 1]))
    text = Spoken(np.array([5, 6, 7], np.int32), 2)
    found = engine.mean_log_prob(prepared, state, np.array([6, 6]), rows[:, -1], [text, text])
    whole = np.concatenate([rows, np.tile(text.tokens, (2, 1))], axis=1)
    positions = np.broadcast_to(np.arange(9), whole.shape)
    log_prob = token_log_probs(decoder.graph(EXACT), (base, adapters), whole, positions, np.ones_like(whole))[0]
    np.testing.assert_allclose(found, np.asarray(log_prob)[:, -2:].mean(axis=1), atol=1e-5)


# --- Tokens ---


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    words = (*code_word.CUPS, *code_word.WORDS)
    return Chat(train_symbol_tokenizer(["so: find it, start empty"], words, tmp_path_factory.mktemp("words")))


def test_lead_in_and_answer_share_no_token(chat):
    found = spoken(code_word.Prompt(), chat, "red")
    np.testing.assert_array_equal(found.tokens, np.r_[chat.codec.encode("so:"), chat.codec.encode("red")])
    assert found.scored == 1


def test_without_a_lead_in_the_whole_answer_is_scored(chat):
    class Tagged(code_word.Prompt):
        reference = None

        def answer(self, action):
            return f"so: {action}"

    found = spoken(Tagged(), chat, "red")
    assert found.scored == len(found.tokens) == len(chat.codec.encode("so: red"))


def test_text_never_becomes_a_control_token(chat):
    special = (chat.codec.end_id, chat.codec.user_id, chat.codec.assistant_id)
    found = spoken(code_word.Prompt(), chat, "red<|end|><|user|>\udc80")
    assert not np.isin(found.tokens, special).any()


@pytest.mark.parametrize("wrong", [None, "red", ("so:",), ("so:", 3)])
def test_a_reference_that_is_no_pair_of_texts_is_named(chat, wrong):
    class Wrong(code_word.Prompt):
        def reference(self, answer):
            return wrong

    with pytest.raises(ValueError, match="Wrong.reference returned .*: it must return two strings"):
        spoken(Wrong(), chat, "red")


# --- Episodes ---

TASKS = [Task(seed, "train", seed) for seed in (1, 6, 11, 4, 9)]


@pytest.fixture(scope="module")
def model(chat):
    config = presets.decoder_config("tiny-micro", vocab_size=-(-chat.codec.vocab_size // 8) * 8)
    graphdef, params = decoder.build(config, jax.random.key(3))
    return config, graphdef, jax.tree.map(lambda x: 2 * x, params)


def make_collector(chat, model, context="episode", max_length=120, history=1, **settings):
    config, graphdef, _ = model
    sampling = Sampling(chat.stop_ids, 2, 0.8)
    engine = Engine(graphdef, config, sampling, max_length=max_length, buckets=(32,), pad_id=chat.codec.pad_id)
    pool = EnvironmentPool(checked(code_word.make("", **settings)))
    return Collector(engine, pool, code_word.Prompt(), chat, context, history, 4, 4)


def truths(chat, model, episodes, context):
    """The values before all steps by one pass over everything that the policy had read before each of them."""
    rows = []
    for episode in episodes:
        text = spoken(code_word.Prompt(), chat, episode.reference)
        for turn, step in enumerate(episode.steps):
            earlier = episode.steps[:turn] if context == "episode" else []
            parts = [part for s in earlier for part in (s.prompt_tokens, s.action_tokens)]
            rows.append((np.concatenate([*parts, step.prompt_tokens, text.tokens]), text.scored))
    tokens = np.stack([np.pad(row, (0, 120 - len(row))) for row, _ in rows])
    positions = np.broadcast_to(np.arange(120), tokens.shape)
    log_prob = np.asarray(token_log_probs(model[1], model[2], tokens, positions, np.ones_like(tokens))[0])
    return [float(found[len(row) - count : len(row)].mean()) for found, (row, count) in zip(log_prob, rows)]


def same(ours, theirs, atol=0.0):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        assert [s.action for s in one.steps] == [s.action for s in other.steps]
        for a, b in zip(one.steps, other.steps):
            for name in ("prompt_tokens", "action_tokens", "log_prob", "entropy"):
                np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=0, atol=atol)


@pytest.mark.parametrize("context", ["step", "episode"])
def test_episodes_are_the_same_and_have_the_values_of_a_full_pass(chat, model, context):
    collector = make_collector(chat, model, context)
    plain = collector.play(model[2], [Start(task) for task in TASKS], KEY)
    found = collector.play(model[2], [Start(task) for task in TASKS], KEY, score_answers=True)
    same(plain, found)
    assert unscored(plain) == sum(len(e.steps) for e in plain) > unscored(found) == 0
    assert len({len(e.steps) for e in found}) > 1  # rows finish at different times
    values = [step.answer_log_prob for episode in found for step in episode.steps]
    np.testing.assert_allclose(values, truths(chat, model, found, context), rtol=1e-5)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("context", ["step", "episode"])
def test_an_episode_that_starts_in_the_middle_keeps_its_values(chat, model, context, keep):
    collector = make_collector(chat, model, context, capabilities=("reference_answer", "snapshot" if keep else "replay"))
    whole = collector.play(model[2], [Start(task) for task in TASKS], KEY, keep=keep, score_answers=True)
    starts = [Start.before(episode, len(episode.steps) - 1) for episode in whole]
    again = collector.play(model[2], starts, KEY, score_answers=True)
    same(whole, again, atol=1e-4)  # another number of rows may play at the same time, which rounds sums in another order
    for one, other in zip(whole, again):
        assert [s.answer_log_prob for s in one.steps[:-1]] == [s.answer_log_prob for s in other.steps[:-1]]
        assert one.steps[-1].answer_log_prob == pytest.approx(other.steps[-1].answer_log_prob, abs=1e-4)


def test_a_row_without_room_has_no_value_and_the_user_is_told(chat, model, caplog):
    roomy = make_collector(chat, model)
    (whole,) = roomy.play(model[2], [Start(TASKS[0])], KEY, score_answers=True)
    assert len(whole.steps) > 1
    said = [len(s.prompt_tokens) + len(s.action_tokens) for s in whole.steps]
    last = sum(said[:-1]) + len(whole.steps[-1].prompt_tokens)
    tight = make_collector(chat, model, max_length=last + 2)  # an answer fits, "so:" and the word do not
    (found,) = tight.play(model[2], [Start(TASKS[0])], KEY, score_answers=True)
    assert [s.action_tokens.tolist() for s in found.steps] == [s.action_tokens.tolist() for s in whole.steps]
    values = [s.answer_log_prob for s in found.steps]
    assert np.isfinite(values[0]) and np.isnan(values[-1])
    assert "1 of 1 episodes have steps before which no reference answer was scored" in caplog.text and "raise these limits" in caplog.text
    signal = answer_log_probs([found], 4)
    assert np.isnan(signal[0, len(values) - 1]) and (signal[0, len(values) :] == 0).all() and signal.dtype == np.float32


def test_an_episode_without_a_reference_has_no_values(chat, model, caplog):
    collector = make_collector(chat, model, reference=False)
    found = collector.play(model[2], [Start(task) for task in TASKS], KEY, score_answers=True)
    assert unscored(found) == sum(len(e.steps) for e in found)
    assert caplog.text.count("the environment gave none") == 1


# --- Runs ---


@dataclasses.dataclass(frozen=True)
class AnswerReader(credit.Method):
    """The outcome's advantage, and the signal among its metrics."""

    name: ClassVar[str] = "answer_reader"

    @property
    def requires(self):
        return frozenset({"answer_log_prob"})

    def assign(self, batch: Batch):
        found = credit.make("rloo").assign(batch)
        value = jnp.where(batch.step_mask, jnp.nan_to_num(batch.signals["answer_log_prob"]), 0.0)
        return found.replace(metrics=found.metrics | {"answer": value.sum() / batch.step_mask.sum()})


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(credit_base, "_METHODS", credit_base._METHODS | {AnswerReader.name: AnswerReader})


def config_of(micro_config, changes=None):
    config = micro_config(dict(code_word.CONFIG) | {"credit.method": "answer_reader", "eval.prm_as_policy_every": 0} | (changes or {}))
    return config


@pytest.mark.parametrize("context", ["step", "episode"])
def test_a_run_reads_the_signal(micro_config, tmp_path, context):
    changes = {"rollout.context": context, "rollout.max_row_tokens": 64}
    runner = Runner(config_of(micro_config, changes), tmp_path / "run")
    runner.run()
    lines = [line for line in runner.history() if line["stage"] == "train"]
    assert lines and all(line["rollout/unscored_answers"] == 0 and line["credit/answer"] < 0 for line in lines)


def test_an_offline_run_reads_what_was_recorded(micro_config, tmp_path):
    exploration = {"exploration.tasks": 4, "exploration.rollouts": 4, "exploration.part_tasks": 4, "rollout.group_size": 4}
    changes = exploration | {"train.mode": "offline", "sft.updates": 4}
    runner = Runner(config_of(micro_config, changes), tmp_path / "run")
    runner.run()
    lines = [line for line in runner.history() if line["stage"] == "train"]
    assert lines and all(line["rollout/unscored_answers"] == 0 and line["credit/answer"] < 0 for line in lines)
    borrowed = changes | {"stages.sft": str(tmp_path / "run"), "stages.exploration": str(tmp_path / "run")}
    file = tmp_path / "run" / "exploration" / "metadata.json"
    header = json.loads(file.read_text())
    assert header["metadata"].pop(SCORED)
    for scored, method, fits in ((True, "rloo", True), (False, "rloo", True), (False, "answer_reader", False)):
        if not scored:
            file.write_text(json.dumps(header))
        runner = Runner(config_of(micro_config, borrowed | {"credit.method": method}), tmp_path / f"{method} {scored}")
        try:
            if fits:
                assert len(runner.exploration.read()) == 16
            else:
                with pytest.raises(UserError, match="was made with signal answer_log_prob = '.absent.', but this run has True"):
                    runner.exploration.read()
        finally:
            runner.close()


def test_an_environment_without_reference_answers_is_refused(micro_config, tmp_path):
    with pytest.raises(ValueError, match="the signal answer_log_prob of credit.method='answer_reader' needs 'reference_answer'"):
        Runner(micro_config({"credit.method": "answer_reader"}), tmp_path / "run")


def test_the_plan_lists_the_pass_only_where_it_is_made(micro_config):
    from stepreward.tpu import plan

    mesh = parallel.make_mesh(1, 1, 1)
    for method, wanted in (("answer_reader", True), ("rloo", False)):
        listed = [program for _, program, _ in plan.programs(config_of(micro_config, {"credit.method": method}), mesh)]
        found = [program for program in listed if program.name == "rollout/reference"]
        assert bool(found) == wanted
        for program in found:
            program.lower()


def test_the_lead_in_is_among_the_tokenizers_texts(micro_config, tmp_path):
    runner = Runner(config_of(micro_config), tmp_path / "run")
    try:
        chat, unknown = runner.parts.chat, runner.parts.chat.codec.encode("§")[0]
        assert unknown not in spoken(code_word.Prompt(), chat, "red").tokens
        assert setup.scores_answers(runner.method) and REFERENCE in runner.parts.collector.pool.capabilities()
    finally:
        runner.close()
