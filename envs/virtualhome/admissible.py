"""Lists executable actions from a bounded set of candidates, because the benchmark itself lists none.

The candidate objects are those of the task (in its program and goal), those in the agent's hands, and a few nearby ones. The list
reveals the task's objects among others, which helps a policy, like the lists of ALFWorld and WebShop.
"""

from __future__ import annotations

from collections.abc import Sequence

from stepreward.envs.virtualhome.game import Game, Position

_PLACES = ("WALK", "FIND")
# Verb: its first object must have one of these properties. With (), any object is tried, and the simulator decides.
_CHANGES = {
    "GRAB": ("GRABBABLE",),
    "OPEN": ("CAN_OPEN",),
    "CLOSE": ("CAN_OPEN",),
    "SWITCHON": ("HAS_SWITCH",),
    "SWITCHOFF": ("HAS_SWITCH",),
    "PLUGIN": ("HAS_PLUG",),
    "PLUGOUT": ("HAS_PLUG",),
    "SIT": ("SITTABLE",),
    "LIE": ("LIEABLE",),
    "PUTON": ("CLOTHES",),
    "PUTOFF": ("CLOTHES",),
}
_ACTS = {
    "TURNTO": (),
    "LOOKAT": (),
    "WATCH": ("LOOKABLE",),
    "READ": ("READABLE",),
    "TYPE": ("HAS_SWITCH",),
    "TOUCH": (),
    "DRINK": ("DRINKABLE", "RECIPIENT"),
    "EAT": ("EATABLE",),
    "WASH": (),
    "RINSE": (),
    "SCRUB": (),
    "WIPE": (),
}
_OF_HELD = ("DROP", "PUTOBJBACK")
_FROM_HELD = ("PUTBACK", "PUTIN", "POUR")
_BARE = ("STANDUP", "SLEEP", "WAKEUP")
_GRABBED_ANYWAY = ("water", "child")  # the simulator allows grabbing these without the property


def admissible(game: Game, at: Position, objects: Sequence[int], acts: bool, near: int = 4) -> tuple[str, ...]:
    """Returns the texts of actions that would be executed at a position.

    Args:
      game, at: the task and the position.
      objects: ids of the task's objects.
      acts: whether to include actions that do not change the home (look at, touch, read …), and washing.
      near: number of further objects to include, from those that are close and visible.
    """
    scene, state = game.scene, at.state
    held = scene.held(state)
    listed = dict.fromkeys([*objects, *held])
    more = [number for number in scene.visible_near(state) if number not in listed]
    candidates = [number for number in [*listed, *more[:near]] if number != scene.agent]
    tried: list[tuple[str, tuple[int, ...]]] = []
    verbs = {**_CHANGES, **_ACTS} if acts else _CHANGES
    for number in candidates:
        tried += [(verb, (number,)) for verb in _PLACES]
        if number in scene.rooms:
            continue
        for verb, properties in verbs.items():
            grabbed = verb == "GRAB" and scene.names[number] in _GRABBED_ANYWAY
            if not properties or grabbed or scene.has_property(number, *properties):
                tried.append((verb, (number,)))
    for number in held:
        tried += [(verb, (number,)) for verb in _OF_HELD]
        for verb in _FROM_HELD:
            tried += [(verb, (number, other)) for other in candidates if other != number and other not in scene.rooms]
    tried += [(verb, ()) for verb in _BARE]
    found = dict.fromkeys(game.say(at, verb, ids) for verb, ids in tried if scene.allows(state, verb, ids))
    return tuple(found)
