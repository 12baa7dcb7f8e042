"""Records what a player has seen in an episode, turn by turn, from the texts alone."""

from __future__ import annotations

import re

from stepreward.envs.alfworld.grammar import NEW, in_words_of

# Types of places in a sensible search order: open surfaces first, then containers.
ORDER = (
    "countertop", "diningtable", "coffeetable", "sidetable", "desk", "dresser", "shelf", "bed", "sofa", "armchair",
    "ottoman", "tvstand", "cart", "stoveburner", "coffeemachine", "toaster", "sinkbasin", "bathtubbasin", "toilet",
    "garbagecan", "handtowelholder", "towelholder", "toiletpaperhanger", "laundryhamper",
    "fridge", "microwave", "safe", "box", "cabinet", "drawer",
)  # fmt: skip
_CHANGES = ("clean", "heat", "cool")
_SEEN = re.compile(r"you see (.*?)\.?\s*$", re.MULTILINE)


def room_places(text: str) -> list[str]:
    """Returns the places that the first observation of a game lists; an empty list for other texts."""
    found = re.search(r"Looking quickly around you, you see .*", text)
    return things(found[0]) if found else []


def things(text: str) -> list[str]:
    """Returns the objects that a sentence of the game lists after "you see", in order; an empty list for "nothing"."""
    found = _SEEN.search(text)
    if not found:
        return []
    listed = re.sub(r",? and (?=an? )", ", ", found[1])
    return [re.sub(r"^an? ", "", one.strip()) for one in listed.split(", ") if one.strip() not in ("", "nothing")]


class Memory:
    """What the player knows: the places, their contents, its own position and what it holds.

    * places: every place of the room, in search order.
    * inside: place -> the objects last seen there; places that have not been searched are absent.
    * shut: places known to be closed.
    * at, held: names of the current place and the held object, "" for none.
    * changed: what was cleaned, heated or cooled, such as "clean plate 1".
    * refused: (object, place) pairs that the game refused.
    * unsure: "go to" failed, so the player was already there and has not seen the contents.
    """

    def __init__(self, places: list[str]):
        self.places = sorted(set(places), key=rank)
        self.inside: dict[str, list[str]] = {}
        self.shut: set[str] = set()
        self.refused: set[tuple[str, str]] = set()
        self.changed: set[str] = set()
        self.at = self.held = ""
        self.unsure = False

    def see(self, action: str, text: str) -> None:
        """Records a turn: the action, in either wording, and the observation that followed."""
        action = in_words_of(action or "", NEW)
        verb, _, rest = action.partition(" ")
        failed = text.strip() == "Nothing happens."
        if verb == "go":
            place = rest.removeprefix("to ")
            if place in self.places:
                self.at, self.unsure = place, failed  # "go to" fails if the player is already there
                self._look(place, text)
        elif verb in ("open", "examine") and rest in self.places:
            self.unsure = False
            if failed:
                self.inside.setdefault(rest, [])
            self._look(rest, text)
        elif verb == "close" and not failed:
            self.shut.add(rest)
        elif verb == "take":
            thing, _, place = rest.partition(" from ")
            if thing in self.inside.get(place, []):
                self.inside[place].remove(thing)
            if not failed:
                self.held = thing
        elif verb == "move":
            thing, _, place = rest.partition(" to ")
            if failed:
                self.refused.add((thing, place))
            else:
                self.held = ""
                self.inside.setdefault(place, []).append(thing)
        elif verb in _CHANGES and not failed:
            self.changed.add(f"{verb} {rest.partition(' with ')[0]}")

    def _look(self, place: str, text: str) -> None:
        if f"The {place} is closed" in text:
            self.shut.add(place)
        elif "you see" in text:
            self.shut.discard(place)
            self.inside[place] = things(text)


def kind(name: str) -> str:
    """Returns the type of a numbered object or place: "countertop" for "countertop 2"."""
    return name.rpartition(" ")[0]


def rank(place: str) -> tuple[int, str, int]:
    """Sort key of places: by ORDER, then by number. Types that are not in ORDER come before the first container."""
    type_, _, number = place.rpartition(" ")
    return (ORDER.index(type_) if type_ in ORDER else ORDER.index("fridge") - 1, type_, int(number) if number.isdigit() else 0)
