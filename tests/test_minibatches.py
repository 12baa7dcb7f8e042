"""Mini-batches: every row occurs once, groups stay together, and step ids still refer to their steps."""

import numpy as np
import pytest

from stepreward import signals
from stepreward.batch import TOKEN_LEVEL, Batch
from stepreward.training.minibatches import (
    filled_rows,
    group_minibatches,
    pad_rows,
    round_up,
    row_episodes,
    row_minibatches,
    take_episodes,
    take_groups,
    take_rows,
)

signals.add("weight", signals.EPISODE, np.float32, "A signal of a method of one's own, at a level that none of ours has.")
signals.add("extra", signals.EPISODE, np.float32, "Another one.")

E, S, R, L = 6, 3, 16, 5
STEPS = (3, 1, 2, 0, 3, 2)  # the fourth episode failed
GROUPS = np.array([0, 1, 2, 2, 0, 1], np.int32)


def make_batch():
    """A row a step, 11 in all, in an order of their own, with empty rows between; token r, l is 10 · r + l."""
    rng = np.random.default_rng(0)
    steps = [e * S + t for e in range(E) for t in range(STEPS[e])]
    rows = rng.permutation(R)[: len(steps)]
    step_id = np.full((R, L), -1, np.int32)
    step_id[rows, 3:] = np.array(steps)[:, None]
    tokens = (10 * np.arange(R)[:, None] + np.arange(L)).astype(np.int32)
    mask = np.arange(S) < np.array(STEPS)[:, None]
    return Batch(
        tokens=tokens,
        positions=np.broadcast_to(np.arange(L), (R, L)),
        segment_ids=np.repeat(step_id.max(1, keepdims=True) >= 0, L, axis=1).astype(int),
        action_mask=step_id >= 0,
        step_id=step_id,
        log_prob_old=-tokens / 7.0,
        step_mask=mask,
        env_reward=np.arange(E * S).reshape(E, S) * mask * 1.0,
        executed=mask,
        episode_mask=np.array(STEPS) > 0,
        outcome=np.arange(E) * 1.5,
        success=np.arange(E) % 2 == 0,
        truncated=np.arange(E) % 2 == 1,
        group_id=GROUPS,
        signals={"value": tokens / 3.0, "progress": np.arange(E * S).reshape(E, S) * 2.0, "weight": np.arange(E) * 4.0},
    )


def test_round_up_and_pad_rows():
    assert [round_up(n, 8) for n in (0, 1, 8, 9)] == [0, 8, 8, 16]
    np.testing.assert_array_equal(pad_rows(np.array([[1, 2]], np.int8), 2, -1), np.array([[1, 2], [-1, -1]], np.int8))


@pytest.mark.parametrize("rows, sizes", [(4, [4, 4, 3]), (11, [11]), (99, [11]), (5, [4, 4, 3])])
def test_row_minibatches_cover_each_filled_row_once(rows, sizes):
    batch = make_batch()
    parts = list(row_minibatches(batch, rows, 12, np.random.default_rng(1)))
    assert [len(index) for _, index in parts] == sizes
    np.testing.assert_array_equal(np.sort(np.concatenate([index for _, index in parts])), filled_rows(batch))
    for part, index in parts:
        n = len(index)
        for name in TOKEN_LEVEL:
            value = getattr(part, name)
            assert value.shape[0] == 12
            np.testing.assert_array_equal(value[:n], getattr(batch, name)[index])
        assert not part.action_mask[n:].any() and (part.step_id[n:] == -1).all() and not part.segment_ids[n:].any()
        np.testing.assert_array_equal(part.signals["value"][:n], batch.signals["value"][index])
        np.testing.assert_array_equal(part.signals["progress"], batch.signals["progress"])
        np.testing.assert_array_equal(part.env_reward, batch.env_reward)


def test_the_order_comes_from_the_generator():
    def order(seed):
        return np.concatenate([i for _, i in row_minibatches(make_batch(), 4, 4, np.random.default_rng(seed))])

    np.testing.assert_array_equal(order(1), order(1))
    assert (order(1) != order(2)).any() and (order(1) != np.sort(order(1))).any()


def test_rows_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match="3 rows do not fit into a capacity of 2"):
        take_rows(make_batch(), np.arange(3), 2)


# A capacity equal to the number of episodes must not turn token arrays into episode arrays.
@pytest.mark.parametrize("groups, capacity", [([2, 0], 9), ([1], E), ([0, 2], 8), ([0, 1, 2], R)])
def test_take_groups_against_a_loop(groups, capacity):
    batch = make_batch()
    part = take_groups(batch, np.array(groups), capacity)
    episodes = [e for e in range(E) if GROUPS[e] in groups]
    rows = [r for r in range(R) if batch.step_id[r].max() >= 0 and batch.step_id[r].max() // S in episodes]
    assert part.num_episodes == len(episodes) and part.tokens.shape == (capacity, L)
    for new, old in enumerate(episodes):
        for name in ("step_mask", "env_reward", "executed", "episode_mask", "outcome", "success", "truncated"):
            np.testing.assert_array_equal(getattr(part, name)[new], getattr(batch, name)[old], err_msg=name)
        np.testing.assert_array_equal(part.signals["progress"][new], batch.signals["progress"][old])
        assert part.signals["weight"][new] == batch.signals["weight"][old]
        assert part.group_id[new] == sorted(groups).index(GROUPS[old])
    for new, old in enumerate(rows):
        np.testing.assert_array_equal(part.tokens[new], batch.tokens[old])
        np.testing.assert_array_equal(part.signals["value"][new], batch.signals["value"][old])
        for a, b in zip(part.step_id[new], batch.step_id[old]):
            assert a == (-1 if b < 0 else episodes.index(b // S) * S + b % S)
    assert (part.step_id[len(rows) :] == -1).all() and not part.action_mask[len(rows) :].any()
    assert part.signals["value"].shape == (capacity, L)


def test_row_episodes_name_the_episode_of_each_row():
    batch = make_batch()
    expected = [int(ids.max()) // S if ids.max() >= 0 else -1 for ids in batch.step_id]
    np.testing.assert_array_equal(row_episodes(batch), expected)
    assert expected.count(-1) == R - sum(STEPS)


@pytest.mark.parametrize("known", [True, False], ids=["rows known", "rows found"])
@pytest.mark.parametrize("size", [None, 3, 5])
def test_take_episodes_keeps_their_order_and_pads_with_what_does_not_count(size, known):
    batch, episodes = make_batch(), np.array([4, 0, 2])
    part = take_episodes(batch, episodes, 12, size, row_episodes(batch) if known else None)
    size = size or 3
    assert part.num_episodes == size and part.tokens.shape == (12, L)
    for name in ("step_mask", "env_reward", "executed", "episode_mask", "outcome", "success", "truncated"):
        value = getattr(part, name)
        np.testing.assert_array_equal(value[:3], getattr(batch, name)[episodes], err_msg=name)
        assert not value[3:].any()
    np.testing.assert_array_equal(part.group_id[:3], [0, 0, 1])  # 0 and 2, numbered anew
    for name, shape in (("progress", (size, S)), ("weight", (size,)), ("value", (12, L))):
        assert part.signals[name].shape == shape
    for name in ("progress", "weight"):
        np.testing.assert_array_equal(part.signals[name][:3], batch.signals[name][episodes])
        assert not part.signals[name][3:].any()
    rows = [r for r in range(R) if batch.step_id[r].max() // S in episodes]
    assert len(rows) == sum(STEPS[e] for e in episodes)
    np.testing.assert_array_equal(part.tokens[: len(rows)], batch.tokens[rows])
    np.testing.assert_array_equal(part.signals["value"][: len(rows)], batch.signals["value"][rows])
    for row, ids in zip(rows, part.step_id):
        old = batch.step_id[row]
        new = [list(episodes).index(i // S) * S + i % S if i >= 0 else -1 for i in old]
        np.testing.assert_array_equal(ids, new)
    assert (part.step_id[len(rows) :] == -1).all() and not part.action_mask[len(rows) :].any()


def test_no_episodes_at_all_are_an_empty_part():
    part = take_episodes(make_batch(), np.array([], int), 4, 2)
    assert part.num_episodes == 2 and not part.episode_mask.any() and not part.action_mask.any() and (part.step_id == -1).all()


def test_episodes_whose_rows_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match="8 rows do not fit into a capacity of 4"):
        take_episodes(make_batch(), np.array([0, 2, 4]), 4)


def test_group_minibatches_hold_whole_groups_in_parts_of_one_shape():
    batch = make_batch()
    parts = list(group_minibatches(batch, 2, R, np.random.default_rng(0)))
    assert [p.num_episodes for p in parts] == [4, 4] and sorted(len(np.unique(p.group_id)) for p in parts) == [1, 2]
    single = list(group_minibatches(batch, 1, R, np.random.default_rng(0)))
    np.testing.assert_array_equal(np.sort(np.concatenate([p.outcome for p in single])), batch.outcome)
    assert all(set(p.group_id) == {0} for p in single)
    for found in (parts, single):
        assert sum(int(p.action_mask.sum()) for p in found) == int(batch.action_mask.sum())
        assert sum(int(p.episode_mask.sum()) for p in found) == int(batch.episode_mask.sum())
        assert sum(int(p.step_mask.sum()) for p in found) == int(batch.step_mask.sum())


def test_only_groups_with_a_pair_are_kept_on_request():
    batch = make_batch()  # group 0: episodes 0 (won) and 4 (won); 1: 1 and 5, both lost; 2: 2 (won) and 3, which failed
    keep = lambda batch: list(group_minibatches(batch, 3, R, np.random.default_rng(0), mixed_only=True))
    assert keep(batch) == []
    (part,) = keep(batch.replace(success=np.array([True, True, True, False, False, False])))
    assert part.num_episodes == 6 and part.episode_mask.sum() == 4
    np.testing.assert_array_equal(np.sort(part.outcome[part.episode_mask]), batch.outcome[[0, 1, 4, 5]])


def test_batch_rows_keeps_the_other_levels_whole():
    batch = make_batch()
    part = batch.rows(np.array([3, 1]))
    np.testing.assert_array_equal(part.tokens, batch.tokens[[3, 1]])
    np.testing.assert_array_equal(part.step_id, batch.step_id[[3, 1]])
    np.testing.assert_array_equal(part.signals["value"], batch.signals["value"][[3, 1]])
    np.testing.assert_array_equal(part.signals["progress"], batch.signals["progress"])
    np.testing.assert_array_equal(part.outcome, batch.outcome)
    assert (part.num_episodes, part.max_steps) == (E, S)
    more = batch.with_signals(extra=batch.outcome, value=batch.tokens)
    assert set(batch.signals) == {"value", "progress", "weight"} and set(more.signals) == {*batch.signals, "extra"}
    np.testing.assert_array_equal(more.signals["value"], batch.tokens)
