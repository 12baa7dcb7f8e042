"""Writes observations as text."""

from __future__ import annotations

from stepreward.envs.virtualhome.simulator import Scene

NOTHING = "Nothing happens."
EMPTY = "You see nothing near."  # SPA-RL's release shows an empty text here
_RELATIONS = ("ON",)  # BETWEEN only joins doors and rooms, and the simulator does not use SITTING
_USUAL = ("CLEAN", "PLUGGED_IN", "OFF")  # states that a short text omits


def full(scene: Scene, state, room: bool = False) -> str:
    """SPA-RL's form: `plate is CLEAN, sink is CLEAN, plate ON sink. You have soap.`

    It lists the visible objects close to the agent with their states, by number; then the ON relations among them; then what the
    agent holds. Repeated words appear once. With `room`, it begins with the room.
    """
    near = scene.visible_near(state)
    said = {}
    for number in near:
        states = scene.states(state, number)
        said[scene.names[number] + (" is " + " and ".join(states) if states else "")] = None
    known = set(near)
    for number in near:
        for relation in _RELATIONS:
            for end in scene.targets(state, number, relation):
                if end in known:
                    said[f"{scene.names[number]} {relation} {scene.names[end]}"] = None
    parts = [f"You are in the {_words(scene, scene.room(state))}."] if room else []
    if said:
        parts.append(", ".join(said) + ".")
    held = scene.held(state)
    if held:
        parts.append(f"You have {', '.join(scene.names[number] for number in held)}.")
    return " ".join(parts)


def short(scene: Scene, state) -> str:
    """A few words: room, posture, held objects, and close objects with their unusual states.

    Example: `bathroom. sitting. have soap. near sink, faucet on.`
    """
    parts = [_words(scene, scene.room(state))]
    posture = [each.lower() for each in scene.states(state, scene.agent) if each in ("SITTING", "LYING")]
    parts += posture
    held = scene.held(state)
    if held:
        parts.append("have " + ", ".join(_words(scene, number) for number in held))
    near = [_with_states(scene, state, number) for number in scene.visible_near(state) if number not in held]
    if near:
        parts.append("near " + ", ".join(dict.fromkeys(near)))
    return ". ".join(parts) + "."


def _with_states(scene: Scene, state, number: int) -> str:
    states = [each.lower().replace("_", " ") for each in scene.states(state, number) if each not in _USUAL]
    return " ".join([_words(scene, number), *states])


def _words(scene: Scene, number: int | None) -> str:
    return "unknown" if number is None else scene.names[number].replace("_", " ")
