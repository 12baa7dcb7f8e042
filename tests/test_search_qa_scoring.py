"""Exact match and F1 of answers, in both normalisations."""

import pytest

from stepreward.envs.search_qa.scoring import exact_match, f1, normalise

# (answer, right answer, F1 of igpo, F1 of squad), as the released functions print them.
GOLDEN = [
    ("The Eiffel Tower, Paris", "Eiffel Tower", 2 / 3, 0.8),
    ("paris paris france", "Paris", 2 / 3, 0.5),
    ("a cat", "cat", 2 / 3, 1.0),
    ("O'Neil", "oneil", 0.0, 1.0),
    ("Spider-Man", "spider man", 1.0, 0.0),
]


@pytest.mark.parametrize(("answer", "gold", "igpo", "squad"), GOLDEN)
def test_golden_values(answer, gold, igpo, squad):
    assert f1(answer, [gold], "igpo") == pytest.approx(igpo)
    assert f1(answer, [gold], "squad") == pytest.approx(squad)


def test_the_best_of_several_right_answers_counts():
    assert f1("the Oss", ["River Oss", "Oss"]) == exact_match("The  oss.", ["River Oss", "Oss"]) == 1.0
    assert exact_match("oss", ["River Oss"]) == 0.0


def test_a_closed_answer_counts_only_as_a_whole():
    assert f1("yes it is", ["yes"]) == 0.0 and f1("Yes.", ["yes"]) == 1.0 and f1("no", ["no way"]) == 0.0
    assert f1("yes it is", ["yes"], "igpo") == pytest.approx(0.5)


def test_a_text_without_words_scores_nothing():
    assert f1("...", ["a"]) == f1("the", ["the"]) == f1("?", ["cat"], "igpo") == 0.0


def test_normalised_texts():
    assert normalise("The  U.S.A.,\tan A-team") == "usa ateam"
    assert normalise("The  U.S.A.,\tan A-team", "igpo") == "the u s a an a team"
