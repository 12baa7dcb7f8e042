"""`stepreward methods`: what each method needs, and whether an environment offers it."""

import json
import sys

import pytest

from stepreward import cli, credit, preference
from stepreward.configs.common.base import base_config
from stepreward.launch import methods
from stepreward.training import needs
from stepreward.training.needs import Offer, Row


@pytest.fixture(scope="module")
def rows():
    return {row.name: row for row in needs.rows() if row.kind == "credit"}


def test_every_credit_method_has_a_row(rows):
    assert set(rows) >= set(credit.names())


@pytest.mark.parametrize("name, row", [
    ("grpo", Row("grpo", "credit")),
    ("istar", Row("istar", "credit", ("log_prob_prm",), ("PRM",))),
    ("ppr", Row("ppr", "credit", ("process_score", "value"), ("judge", "critic"))),
    ("turn_return", Row("turn_return", "credit", ("turn_reward",), capabilities=("turn_reward",))),
    ("igpo", Row("igpo", "credit", ("answer_log_prob",), capabilities=("reference_answer",))),
    ("vineppo", Row("vineppo", "credit", ("mc_value",), strategy="restore", restarts=True)),
])  # fmt: skip
def test_what_a_method_needs(rows, name, row):
    assert rows[name] == row


TREE, TURNS = Row("t", "credit", restarts=True), Row("u", "credit", capabilities=("turn_reward",))


@pytest.mark.parametrize("row, able, optional, answer", [
    (TREE, {"replay"}, set(), "yes"), (TREE, {"snapshot"}, set(), "yes"), (TREE, {"image"}, set(), "no: snapshot or replay"),
    (TURNS, {"turn_reward"}, set(), "yes"), (TURNS, set(), {"turn_reward"}, "with turn_reward=True"), (TURNS, set(), set(), "no: turn_reward"),
])  # fmt: skip
def test_what_an_environment_offers(row, able, optional, answer):
    assert Offer(frozenset(able), frozenset(optional)).answer(row) == answer


def test_a_mixture_offers_what_all_of_its_environments_do():
    one, other = Offer(frozenset({"turn_reward"})), Offer(frozenset(), frozenset({"turn_reward"}))
    assert needs.answer(TURNS, {"a": one, "b": other}) == "with turn_reward=True (b)"
    assert needs.answer(TURNS, {"a": other, "b": Offer(frozenset())}) == "no: turn_reward (b)"
    assert needs.answer(TURNS, {"": one}) == "yes"


def test_an_option_of_the_environment_is_found():
    c = base_config()
    assert needs.answer(TURNS, needs.offers(c)) == "with turn_reward=True"
    c.environment.options.turn_reward = True
    assert needs.answer(TURNS, needs.offers(c)) == "yes"


def test_each_registry_has_its_table(monkeypatch, capsys):
    monkeypatch.setattr(needs, "SOURCES", [*needs.SOURCES, lambda: [Row("mine", "other", models=("reference",))]])
    lines = said(monkeypatch, capsys)
    heads = [line.split()[0] for line in lines if line.split()[1:2] == ["signals"]]
    assert heads == ["credit.method", "preference.method", "other.method"]
    assert any(line.split()[0] == "mine" for line in lines if line.strip())


@pytest.mark.parametrize("name", preference.names())
def test_preference_methods_have_rows(name):
    (row,) = [row for row in needs.rows() if (row.name, row.kind) == (name, "preference")]
    method = preference.make(name)
    assert set(row.capabilities) == method.needs and row.restarts == method.restarts and row.models == ("reference",)


def said(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["stepreward methods", *arguments])
    assert methods.main() == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("arguments", [(), ("--environment=search_qa",), ("--config=omni_three:micro",)])
def test_the_table_fits_a_hundred_columns(monkeypatch, capsys, arguments):
    lines = said(monkeypatch, capsys, *arguments)
    assert len(lines) > len(credit.names()) and max(map(len, lines)) <= methods.WIDTH
    whole = "\n".join(lines)
    assert "…" not in whole and all(name in whole for name in (*credit.names(), "log_prob_hindsight", "entropy_branch"))


def test_json_holds_the_same(monkeypatch, capsys, rows):
    table = json.loads("\n".join(said(monkeypatch, capsys, "--json", "--environment=sokoban")))
    assert [row["name"] for row in table] == [row.name for row in needs.rows()]
    found = {row["name"]: row for row in table if row["kind"] == "credit"}
    assert found["igpo"]["offered"] == "no: reference_answer" and found["treerpo"]["offered"] == "yes"
    assert found["igpo"]["capabilities"] == ["reference_answer"]


def test_one_of_environment_and_config_is_allowed(monkeypatch):
    from stepreward.errors import UserError

    monkeypatch.setattr(sys, "argv", ["stepreward methods", "--environment=sokoban", "--config=omni_three"])
    with pytest.raises(UserError, match="only one of them"):
        methods.main()


def test_it_is_a_job_of_the_command():
    assert "methods" in cli.JOBS
