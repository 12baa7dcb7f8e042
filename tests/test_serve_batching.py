"""Requests that share a batch: each draws the same tokens as alone, wherever its row moves, and ends for the right reason."""

import dataclasses
import threading

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from test_serve import HELLO, LENGTH, LONGEST, engine_answer, make_model

from stepreward.serve import Batcher, Request, load_folder
from stepreward.serve.engine import row_sampling


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return load_folder(make_model(tmp_path_factory.mktemp("hub")), dtype="float32", max_length=LENGTH, max_tokens=LONGEST)


class Watched:
    """An engine that notes how many rows each chunk has; its first chunk waits for `leave`."""

    def __init__(self, engine):
        self._engine, self.leave, self.turns = engine, threading.Event(), []

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def conversations(self, params, count):
        rows = self._engine.conversations(params, count)
        run = rows.run

        def watched():
            assert self.leave.wait(60)
            self.turns.append(rows.count)
            return run()

        rows.run = watched
        return rows


def answers(served, requests, engine=None):
    """`(text, reason, tokens)` of each request, all sent before the first chunk is decoded."""
    engine = engine or Watched(served.engine)
    said, ends, done = [""] * len(requests), [None] * len(requests), [threading.Event() for _ in requests]

    def listener(index):
        def tell(piece):
            said[index] += piece.text
            if piece.finish_reason:
                ends[index] = piece
                done[index].set()

        return tell

    with Batcher(engine, served.params, served.text_of, max_rows=8) as batcher:
        for index, request in enumerate(requests):
            batcher.submit(request, listener(index))
        engine.leave.set()
        assert all(event.wait(120) for event in done)
    return [(text, end.finish_reason, end.tokens) for text, end in zip(said, ends)]


def prompt_of(served, text=HELLO[0]["content"]):
    return served.conversations.prompt([("user", text)])


def test_seeded_requests_of_unequal_length_keep_their_answers_while_the_batch_shrinks(served):
    lengths = [3, 39, 20, 5, 36, 3, 18, 4]  # those that go on stand between others that end
    prompts = [prompt_of(served, "push " + "the box " * n) for n in range(len(lengths))]
    requests = [Request(p, n, temperature=1.0, seed=seed) for seed, (p, n) in enumerate(zip(prompts, lengths))]
    engine = Watched(served.engine)
    together = answers(served, requests, engine)
    alone = [answers(served, [request])[0] for request in requests]
    assert together == alone and len({text for text, *_ in together}) == len(requests)
    sizes = engine.turns
    assert sizes[0] <= 8 and max(sizes) == 8 and sizes[-1] < 8  # it did shrink, with a row that had not been the first
    assert sum(tokens > 16 for *_, tokens in together) >= 3


def test_an_answer_goes_on_over_chunks_with_the_key_of_its_seed(served):
    engine = Watched(served.engine)
    ((_, _, tokens),) = answers(served, [Request(prompt_of(served), LONGEST, temperature=1.0, seed=5)], engine)
    assert tokens > 32 and len(engine.turns) == 3
    assert len({tuple(row_sampling(seed, 1.0, 0, 1.0).keys) for seed in (0, 1, 2**63)}) == 3


@pytest.mark.parametrize("short_of", [0, 1, 2])
def test_a_stop_token_beyond_the_last_token_asked_for_ends_nothing(served, short_of):
    """The chunk goes on to the stop token; the answer ends before it, and so not because of it."""
    sampled = engine_answer(served, HELLO, 8)[2].tokens[0]
    place = next(i for i in range(3, 8) if sampled[i] not in sampled[:i])  # counted from 0
    sampling = dataclasses.replace(served.engine.sampling, stop_ids=(int(sampled[place]),))
    engine = Watched(dataclasses.replace(served.engine, sampling=sampling))
    longest = place + 1 - short_of
    ((text, reason, tokens),) = answers(served, [Request(prompt_of(served), longest, temperature=0.0)], engine)
    assert (reason, tokens) == ("length" if short_of else "stop", longest)
    assert text == served.text_of(sampled[:longest])
