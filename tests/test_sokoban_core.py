"""Sokoban's rules on hand-written boards."""

import hashlib

import numpy as np
import pytest

from stepreward.envs.sokoban import core, render


def board(*rows):
    return "\n".join(rows)


def play(text, *actions):
    """Returns the transitions of `actions`, and the final board."""
    room, state = core.from_text(text)
    transitions = []
    for action in actions:
        transitions.append(core.step(room, state, action))
        state = transitions[-1].state
    return transitions, core.to_text(room, state)


CORRIDOR = board("######", "#PXO_#", "#____#", "#____#", "######")


def test_push_onto_the_only_target_wins():
    (won,), after = play(CORRIDOR, "right")
    assert after == board("######", "#_P√_#", "#____#", "#____#", "######")
    assert (won.done, won.executed) == (True, True)
    assert won.reward == pytest.approx(-0.1 + 1 + 10)


def test_walk_changes_only_the_player():
    (walk,), after = play(CORRIDOR, "down")
    assert after == board("######", "#_XO_#", "#P___#", "#____#", "######")
    assert (walk.reward, walk.done, walk.executed) == (-0.1, False, True)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        (CORRIDOR, "up"),  # wall
        (board("#####", "##_O#", "#PX##", "#___#", "#####"), "right"),  # box against a wall
        (board("#######", "#PXX_O#", "#____O#", "#######"), "right"),  # box against a box
    ],
)
def test_blocked_moves_change_nothing(text, action):
    (blocked,), after = play(text, action)
    assert after == text
    assert (blocked.reward, blocked.done, blocked.executed) == (-0.1, False, False)


def test_rewards_of_two_boxes():
    # Box 1 enters the first target (+1), leaves it (−1) and enters the second one (+1); box 2 does not move.
    start = board("########", "#PXO_O_#", "#__X___#", "########")
    transitions, after = play(start, "right", "right", "right")
    assert after == board("########", "#__OP√_#", "#__X___#", "########")
    assert [t.reward for t in transitions] == pytest.approx([0.9, -1.1, 0.9])
    assert not any(t.done for t in transitions)


def test_push_from_target_to_target_neither_earns_nor_costs():
    (push,), after = play(board("#######", "#P√O__#", "#__X__#", "#######"), "right")
    assert after == board("#######", "#_S√__#", "#__X__#", "#######")
    assert push.reward == pytest.approx(-0.1)
    assert not push.done


def test_winning_with_two_boxes_pays_once():
    (won,), _ = play(board("#######", "#PXO__#", "#__√__#", "#######"), "right")
    assert won.done
    assert won.reward == pytest.approx(10.9)


@pytest.mark.parametrize("action,row,column", [("up", 1, 2), ("down", 3, 2), ("left", 2, 1), ("right", 2, 3)])
def test_directions(action, row, column):
    (_,), after = play(board("#####", "#___#", "#_P_#", "#___#", "#XO_#", "#####"), action)
    assert after.split("\n")[row][column] == "P"


def test_text_round_trip_and_codes():
    text = board("######", "#S√X_#", "#_O__#", "#X___#", "######")
    room, state = core.from_text(text)
    assert core.to_text(room, state) == text
    grid = core.to_grid(room, state)
    assert grid.dtype == np.int8 and grid.shape == (5, 6)
    assert ["".join(core.SYMBOLS[code] for code in row) for row in grid] == text.split("\n")


def test_equal_boards_are_equal_and_hash_equal():
    first, second = core.from_text(CORRIDOR), core.from_text("\n  " + CORRIDOR.replace("\n", "\n  ") + "\n\n")
    assert first == second
    assert hash(first) == hash(second)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (None, "not text"),
        (board("#####", "#PXO#", "####"), "row 2 has 4 symbols, but row 0 has 5"),
        (board("#####", "#PX?#", "#####"), r"row 1, column 3: unknown symbol '\?'"),
        (board("#####", "_PXO#", "#####"), "row 1, column 0: the outer wall has a gap"),
        (board("######", "#PPXO#", "######"), "players: 2, boxes: 1, targets: 1"),
        (board("######", "#PXX_#", "######"), "players: 1, boxes: 2, targets: 0"),
        (board("#####", "#P__#", "#####"), "players: 1, boxes: 0, targets: 0"),
    ],
)
def test_malformed_boards_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        core.from_text(text)


def test_pictures_are_made_of_the_tiles():
    grids = np.array([[[0, 1, 2, 3]], [[4, 5, 6, 0]]])
    pictures = render.rgb(grids)
    assert pictures.shape == (2, 16, 64, 3) and pictures.dtype == np.uint8
    for index, codes in enumerate(grids[:, 0]):
        for column, code in enumerate(codes):
            np.testing.assert_array_equal(pictures[index, :, 16 * column : 16 * column + 16], render.TILES[code])


def test_tiles_never_change():
    digest = hashlib.sha256(b"".join(tile.tobytes() for tile in render.TILES)).hexdigest()
    assert digest.startswith("6dcc94f6f040a1b2")  # policies that see pictures are trained on these tiles


def test_tiles_differ_from_each_other():
    assert len({tile.tobytes() for tile in render.TILES}) == len(core.SYMBOLS)


def test_pictures_of_one_board_alone_are_refused():
    with pytest.raises(ValueError, match=r"\[B, H, W\]"):
        render.rgb(np.zeros((3, 3), np.int8))
