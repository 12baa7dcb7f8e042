"""Backward transfer: how much training on one task changes success on another, and the order of tasks that forgets least.

The matrix B has B[i][j] = (success on task i after training on task j) − (success on task i before), in [−1, 1]. If the tasks are trained in
the order π, each task is followed by the training on all later ones. Under the assumption that these changes add up, the order has the
total backward transfer

    F(π) = Σ_{a < b} B[π_a][π_b]

and the order that forgets least has the largest F. Omni-Thinker (arXiv 2507.14783) orders its tasks by measured backward transfer; how exactly was not checked, so F is this library's rule.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

EXHAUSTIVE = 7  # up to so many tasks, all orders are compared (5,040)


def total_transfer(order: Sequence[str], transfer: Mapping[str, Mapping[str, float]]) -> float:
    """Returns F of an order: the sum of `transfer[earlier][later]` over all pairs."""
    return math.fsum(transfer[earlier][later] for earlier, later in itertools.combinations(order, 2))


def order_by_transfer(names: Sequence[str], transfer: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    """Returns the order of tasks that forgets least.

    With at most 7 tasks, every order is compared, and of equal ones the first in the order of `names` is taken. With more, the order is
    built from its beginning: the next task is the one with the largest Σ_j (B[i][j] − B[j][i]) over the tasks j that are left, which is
    what F gains if i comes before all of them instead of after them. That order need not be the best one.

    Example: B[a][b] = −0.3 and B[b][a] = −0.1. Training on b after a costs 0.3, the other way round 0.1, so the order is (b, a).

    Args:
      names: the tasks.
      transfer: B, by the name of the task that is measured and that of the task that is trained on; B[i][i] is not read.
    """
    if len(names) <= EXHAUSTIVE:
        return max(itertools.permutations(names), key=lambda order: round(total_transfer(order, transfer), 12))  # the first of equal ones
    left, order = list(names), []
    while left:
        gain = lambda i: round(math.fsum(transfer[i][j] - transfer[j][i] for j in left if j != i), 12)
        order.append(max(left, key=gain))
        left.remove(order[-1])
    return tuple(order)


def read_transfer(path: str | Path, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Reads B from a JSON file {"transfer": {measured: {trained: number}}}, as experiments/transfer.py writes it.

    Raises:
      ValueError: the file is missing or not JSON, or lacks a number for a pair of `names`; the message names it.
    """
    where = f"mixture.transfer={str(path)!r}"
    try:
        found = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {error.strerror or error}.") from None
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON: {error}.") from None
    rows = found.get("transfer") if isinstance(found, dict) else None
    for measured, trained in itertools.permutations(names, 2):
        row = rows.get(measured) if isinstance(rows, dict) else None
        value = row.get(trained) if isinstance(row, dict) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(
                f"{where} has no finite number transfer.{measured}.{trained}, the change of success on {measured} by training on {trained}: "
                "measure it with experiments/transfer.py."
            )
    return {i: {j: float(rows[i][j]) for j in names if j != i} for i in names}
