"""The order of tasks that forgets least, the file that it is computed from, and the script that measures it."""

import itertools
import json
import runpy

import numpy as np
import pytest

from stepreward.config import save_config
from stepreward.errors import UserError
from stepreward.training.mixture import Mixture
from stepreward.training.transfer import EXHAUSTIVE, order_by_transfer, read_transfer, total_transfer


def matrix(names, numbers):
    return {i: dict(zip(names, row)) for i, row in zip(names, numbers)}


# Rows are measured, columns trained on.
THREE = matrix("abc", [[9.0, -0.3, 0.1], [-0.1, 9.0, -0.2], [-0.4, 0.0, 9.0]])


def test_of_two_tasks_the_one_that_suffers_more_comes_last():
    assert order_by_transfer("ab", matrix("ab", [[0, -0.3], [-0.1, 0]])) == ("b", "a")


def test_the_transfer_of_an_order_is_that_of_all_later_tasks():
    # b, a, c: training on a and c after b changes b by -0.1 and -0.2; training on c after a changes a by 0.1.
    assert total_transfer("bac", THREE) == pytest.approx(-0.2)
    assert total_transfer("abc", THREE) == pytest.approx(-0.3 + 0.1 - 0.2)
    # All six: abc -0.4, acb -0.2, bac -0.2, bca -0.7, cab -0.7, cba -0.5. The first of the two best is taken.
    assert order_by_transfer("abc", THREE) == ("a", "c", "b")


def test_equal_orders_keep_the_order_of_the_names():
    assert order_by_transfer("cab", matrix("cab", np.full((3, 3), -0.1))) == tuple("cab")


def test_no_order_of_few_tasks_forgets_less():
    names = "abcde"
    numbers = np.random.default_rng(0).normal(size=(5, 5))
    found = order_by_transfer(names, matrix(names, numbers))
    best = max(total_transfer(order, matrix(names, numbers)) for order in itertools.permutations(names))
    assert total_transfer(found, matrix(names, numbers)) == pytest.approx(best)


def test_many_tasks_are_ordered_from_the_beginning():
    names = "abcdefgh"
    assert len(names) > EXHAUSTIVE
    # Each task is hurt by the training on every earlier letter, so those must come before it: the order of the alphabet forgets nothing.
    numbers = [[-0.1 * (j < i) for j in range(8)] for i in range(8)]
    found = order_by_transfer(names, matrix(names, numbers))
    assert found == tuple(names) and total_transfer(found, matrix(names, numbers)) == 0.0


def test_the_greedy_order_of_many_tasks_gains_the_most_at_each_step():
    names = "abcdefgh"
    numbers = np.random.default_rng(1).normal(size=(8, 8))
    table, left = matrix(names, numbers), list(names)
    for name in order_by_transfer(names, table):
        gains = {i: sum(table[i][j] - table[j][i] for j in left if j != i) for i in left}
        assert gains[name] == pytest.approx(max(gains.values()))
        left.remove(name)


@pytest.mark.parametrize("text, words", [
    ("{", "is not valid JSON"), ("[]", "has no finite number transfer.a.b"), ('{"transfer": {"a": {"b": 0.1}}}', "transfer.b.a"),
    ('{"transfer": {"a": {"b": NaN}, "b": {"a": 0}}}', "transfer.a.b, the change of success on a by training on b"),
    ('{"transfer": {"a": {"b": true}, "b": {"a": 0}}}', "transfer.a.b"),
])  # fmt: skip
def test_a_matrix_that_lacks_a_number_is_an_error(tmp_path, text, words):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_transfer(tmp_path / "t.json", ["a", "b"])


def test_a_run_reads_its_order_from_the_file(micro, tmp_path):
    names = ["questions", "rooms", "shop"]
    (tmp_path / "t.json").write_text(json.dumps({"transfer": matrix(names, [[0, -0.3, 0.1], [-0.1, 0, -0.2], [-0.4, 0.0, 0]])}))
    config = micro("omni_three", {"mixture.order": "transfer", "mixture.transfer": str(tmp_path / "t.json")})
    mixture = Mixture.of(config)
    assert mixture.sequence == ("questions", "shop", "rooms")
    assert [mixture.environments(0, 2, done)[0] for done in (0, 0.4, 0.7, 1.2)] == ["questions", "shop", "rooms", "rooms"]
    assert set(mixture.environments(0, 3)) == set(names)  # exploration plays all


@pytest.fixture(scope="module")
def script(root):
    return runpy.run_path(str(root / "experiments" / "transfer.py"))


def run(micro, folder, trained, before, after):
    config = micro("omni_three", {"mixture.order": "sequential", "mixture.sequence": trained})
    folder.mkdir()
    save_config(config, folder / "config.json")
    lines = [
        {"tick": tick, "eval/success": 0.5} | {f"eval/{n}/success": x for n, x in found.items()}
        for tick, found in ((1, before), (2, after))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_script_measures_the_change_of_success(script, micro, tmp_path):
    before = {"rooms": 0.5, "shop": 0.25}
    folders = [
        run(micro, tmp_path / "a", ("rooms",), before, {"rooms": 0.75, "shop": 0.0}),
        run(micro, tmp_path / "b", ("shop",), before, {"rooms": 0.5, "shop": 0.5}),
    ]
    found = script["measure"](folders)
    assert found["transfer"] == {"rooms": {"rooms": 0.25, "shop": 0.0}, "shop": {"rooms": -0.25, "shop": 0.25}}
    assert found["before"] == before and found["order"] == ["rooms", "shop"]  # 0 against -0.25
    assert "shop" in script["table"](found["transfer"])
    with pytest.raises(UserError, match="no run was trained on shop alone"):
        script["measure"](folders[:1])
    with pytest.raises(UserError, match="give one run for each environment"):
        script["measure"]([folders[0], folders[0]])
