"""Sokoban's rules, compared with jumanji's independent implementation in JAX."""

import numpy as np
import pytest

from stepreward.envs.sokoban import core, settings, solve
from stepreward.envs.sokoban.generate import room_for

jumanji = pytest.importorskip("jumanji")

SIZE, BOXES = 10, 4  # hard-wired in jumanji
EMPTY, WALL, TARGET, AGENT, BOX = range(5)
ACTIONS = ("up", "right", "down", "left")  # jumanji's order
SEALED = [(SIZE - 1) * SIZE + column for column in range(BOXES)]


def padded(room, state):
    """Converts a room to jumanji's two grids: it is in the corner of a walled board, with extra boxes on targets in the last row."""
    fixed, moving = np.full((SIZE, SIZE), WALL, np.uint8), np.full((SIZE, SIZE), EMPTY, np.uint8)
    grid = core.to_grid(room, state)
    for (row, column), code in np.ndenumerate(grid):
        if code != core.WALL:
            on_target = code in (core.TARGET, core.BOX_ON_TARGET, core.PLAYER_ON_TARGET)
            fixed[row, column] = TARGET if on_target else EMPTY
        if code in (core.BOX, core.BOX_ON_TARGET):
            moving[row, column] = BOX
        if code in (core.PLAYER, core.PLAYER_ON_TARGET):
            moving[row, column] = AGENT
    for cell in SEALED[: BOXES - len(state.boxes)]:
        fixed[divmod(cell, SIZE)], moving[divmod(cell, SIZE)] = TARGET, BOX
    return fixed, moving


@pytest.mark.parametrize(("height", "width", "boxes"), [(6, 6, 1), (8, 8, 2), (9, 10, 3), (9, 9, 4)])
def test_random_play_agrees(height, width, boxes):
    import jax
    import jax.numpy as jnp
    from jumanji.environments.routing.sokoban import Sokoban
    from jumanji.environments.routing.sokoban.generator import SimpleSolveGenerator
    from jumanji.environments.routing.sokoban.types import State as JumanjiState

    step = jax.jit(Sokoban(generator=SimpleSolveGenerator()).step)
    chosen = settings("istar", height=height, width=width, boxes=boxes, search_states=2000)
    generator = np.random.default_rng(boxes)
    taken = wins = pushes = 0
    seed = 0
    while taken < 400:
        room, state = room_for(chosen, seed)
        seed += 1
        fixed, moving = padded(room, state)
        row_column = jnp.array(divmod(state.player, width), jnp.int32)
        theirs = JumanjiState(
            key=jax.random.PRNGKey(0),
            fixed_grid=jnp.array(fixed),
            variable_grid=jnp.array(moving),
            agent_location=row_column,
            step_count=jnp.array(0, jnp.int32),
        )
        # Random play seldom wins, so the solver finishes every fifth room.
        plan = [ACTIONS.index(action) for action in solve.solve(room, state)] if seed % 5 == 0 else None
        for index in generator.integers(4, size=40).tolist() if plan is None else plan:
            ours = core.step(room, state, ACTIONS[index])
            theirs, timestep = step(theirs, jnp.array(index, jnp.int32))
            pushes += ours.state.boxes != state.boxes
            state, taken = ours.state, taken + 1
            np.testing.assert_array_equal(np.asarray(theirs.variable_grid), padded(room, state)[1])
            assert float(timestep.reward) == pytest.approx(ours.reward, abs=1e-5)
            assert bool(timestep.last()) == ours.done
            if ours.done:
                wins += 1
                break
    assert pushes > 20
    assert wins > 0
