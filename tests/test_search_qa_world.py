"""The embedded world of Search QA: its documents and questions, without leaks."""

import pytest

from stepreward.envs.bm25 import Index
from stepreward.envs.search_qa import world
from stepreward.envs.search_qa.scoring import normalise
from stepreward.envs.search_qa.wording import RELATIONS

SIZES = {"train": 400, "held_out": 100}


@pytest.fixture(scope="module", params=["short", "full"])
def built(request):
    return world.build(300, (1, 2, 3, 4), SIZES, request.param, 3)


def test_the_world_is_the_same_for_a_seed_and_another_for_another(built):
    assert world.build(80, (2,), SIZES, "full", 3) == world.build(80, (2,), SIZES, "full", 3) != world.build(80, (2,), SIZES, "full", 4)


def test_names_are_unique_and_every_document_mentions_its_facts(built):
    documents, _, mentions = built
    assert len({document.title for document in documents}) == len(documents) == 300 + 75 + 75 + 30 + 150
    for document, names in zip(documents, mentions):
        assert names[0] == document.title and len(names) - 1 in {len(relations) for relations in RELATIONS.values()}
        assert all(name in document.text for name in names)


def test_the_world_has_thousands_of_facts():
    documents, _, mentions = world.build(600, (1,), SIZES, "full", 0)
    assert sum(len(names) - 1 for names in mentions) > 4000


def test_a_name_finds_its_document_first(built):
    documents, *_ = built
    index = Index([document.contents for document in documents])
    assert all(index.search(document.title, 1) == [number] for number, document in enumerate(documents))


def test_gold_paths_exist_and_each_document_names_the_next(built):
    documents, questions, mentions = built
    for question in (*questions["train"], *questions["held_out"]):
        path = [number for (number,) in question.hops]
        assert 1 <= len(path) <= 4 and [documents[number].title for number in path] == list(question.queries)
        assert question.queries[0] in question.text
        for number, following in zip(path, (*question.queries[1:], question.answers[0])):
            assert following in mentions[number]


def test_answers_are_not_in_the_question_nor_in_an_earlier_document(built):
    documents, questions, mentions = built
    for question in (*questions["train"], *questions["held_out"]):
        assert not set(normalise(question.text).split()) & set(normalise(question.answers[0]).split())
        assert not any(question.answers[0] in mentions[number] for hop in question.hops[:-1] for number in hop)


def test_held_out_questions_are_about_other_things(built):
    _, questions, _ = built
    used = {split: {number for question in asked for hop in question.hops for number in hop} for split, asked in questions.items()}
    assert not used["train"] & used["held_out"]
    answers = {split: {question.answers[0] for question in asked} for split, asked in questions.items()}
    assert not answers["train"] & answers["held_out"]
    texts = [question.text for asked in questions.values() for question in asked]
    assert len(texts) == 500 and [sum(len(q.hops) == length for q in questions["train"]) for length in (1, 2, 3, 4)] == [100] * 4


def test_questions_differ(built):
    _, questions, _ = built
    for asked in questions.values():
        assert len({question.text for question in asked}) == len(asked)
