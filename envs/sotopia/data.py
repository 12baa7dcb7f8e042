"""The benchmark's own data: 90 scenarios, 40 characters and 450 pairings, read from a folder.

Layout: envs.json and agents.json map an id to a profile, env_agent_combos.json lists {"env_id", "agent_ids": [first, second]}.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FILES = ("envs.json", "agents.json", "env_agent_combos.json")
HELD_OUT_SHARE = 5  # one scenario in five is held out

# The 14 scenarios of SOTOPIA-hard (arXiv 2310.11667, section 7), by the benchmark's ids.
HARD = frozenset((
    "01H7VFHNV13MHN97GAH73E3KM8", "01H7VFHN5WVC5HKKVBHZBA553R", "01H7VFHN9W0WAFZCBT09PKJJNK", "01H7VFHPDZVVCDZR3AARA547CY",
    "01H7VFHPQQQY6H4DNC6NBQ8XTG", "01H7VFHN7WJK7VWVRZZTQ6DX9T", "01H7VFHPS5WJW2694R1MNC8JFY", "01H7VFHNN7XTR99319DS8KZCQM",
    "01H7VFHQ11NAMZS4A2RDGDB01V", "01H7VFHPSWGDGEYRP63H2DJKV0", "01H7VFHNF4G18PC9JHGRC8A1R6", "01H7VFHNNYH3W0VRWVY178K2TK",
    "01H7VFHP8AN5643B0NR0NP00VE", "01H7VFHN7A1ZX5KSMT2YN9RXC4",
))  # fmt: skip


class Pairing(NamedTuple):
    """A scenario and the profiles of its two characters, as in the files."""

    scenario: dict[str, Any]
    agents: tuple[dict[str, Any], dict[str, Any]]


@lru_cache(maxsize=4)
def load(folder: str) -> tuple[Pairing, ...]:
    """Reads the pairings, in the order of their file.

    Raises FileNotFoundError that names the missing files, or ValueError that names the file and the malformed entry.
    """
    root = Path(folder)
    missing = [name for name in FILES if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(f"no {', '.join(missing)} in {root}; set data to the folder with the benchmark's {', '.join(FILES)}")
    scenarios = _profiles(root / FILES[0], ("scenario", "agent_goals"))
    agents = _profiles(root / FILES[1], ("first_name", "last_name"))
    file = root / FILES[2]
    pairings = []
    combos = _read(file)
    if not isinstance(combos, list) or not combos:
        raise ValueError(f"{file}: this is not a list of pairings; download it again")
    for index, combo in enumerate(combos):
        ids = combo.get("agent_ids") if isinstance(combo, dict) else None
        if not isinstance(ids, list) or len(ids) != 2 or ids[0] == ids[1] or not isinstance(combo.get("env_id"), str):
            raise ValueError(f"{file}, entry {index}: a pairing needs env_id and two different agent_ids")
        unknown = [f"{combo['env_id']} is not in {FILES[0]}"] if combo["env_id"] not in scenarios else []
        unknown += [f"{key} is not in {FILES[1]}" for key in ids if key not in agents]
        if unknown:
            raise ValueError(f"{file}, entry {index}: {unknown[0]}; download all files of one version of the data")
        pairings.append(Pairing(scenarios[combo["env_id"]], (agents[ids[0]], agents[ids[1]])))
    return tuple(pairings)


def split(pairings: tuple[Pairing, ...], name: str, subset: str = "all", seed: int = 0) -> tuple[Pairing, ...]:
    """Returns the pairings of "train" or "held_out", which share no scenario.

    With subset "all", `seed` draws one scenario in five for "held_out" from the sorted ids. With "hard", "held_out" has the
    scenarios of SOTOPIA-hard and "train" all others. Raises ValueError for an unknown split, or one without pairings.
    """
    if name not in ("train", "held_out"):
        raise ValueError(f"unknown split {name!r}; the splits are train, held_out")
    ids = sorted({pairing.scenario["pk"] for pairing in pairings})
    if subset == "hard":
        out = HARD
    else:
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
        out = {ids[index] for index in generator.permutation(len(ids))[: max(1, len(ids) // HELD_OUT_SHARE)].tolist()}
    chosen = tuple(pairing for pairing in pairings if (pairing.scenario["pk"] in out) == (name == "held_out"))
    if not chosen:
        raise ValueError(f"the data has no pairing in the {name} split of subset {subset!r}; use more data or another subset")
    return chosen


def _profiles(file: Path, needed: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    profiles = _read(file)
    if not isinstance(profiles, dict) or not profiles:
        raise ValueError(f"{file}: this is not a mapping from ids to profiles; download it again")
    for key, profile in profiles.items():
        lacking = [name for name in needed if not (isinstance(profile, dict) and profile.get(name))]
        if lacking:
            raise ValueError(f"{file}, entry {key}: the profile has no {', '.join(lacking)}; download the file again")
    if needed[-1] == "agent_goals":
        for key, profile in profiles.items():
            goals = profile["agent_goals"]
            if not isinstance(goals, list) or len(goals) != 2:
                raise ValueError(f"{file}, entry {key}: agent_goals must be a list of two texts; download the file again")
    return {key: {**profile, "pk": key} for key, profile in profiles.items()}


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # json's and unicode's errors
        raise ValueError(f"{file}: this is not valid JSON, perhaps an incomplete download ({error}); download it again") from None
