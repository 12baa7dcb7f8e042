"""Says what is installed, which devices there are, and which models fit them.

    python launch/doctor.py
    python launch/doctor.py --experiment=spa_sokoban --json

Nothing is downloaded or allocated. Whether a model fits is estimated from its shapes, as a run does before it begins. The exit code is 1 if a package that the library
needs is missing or has a version that it does not support.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from importlib import metadata

from stepreward.config import Option, parse_arguments
from stepreward.errors import UserError, launcher

OPTIONS = (
    Option("experiment", "experiment whose models are fitted to the devices", default="istar_sokoban"),
    Option("json", "print everything as JSON", default=False, type=bool),
)


def main() -> int:
    options = parse_arguments(sys.argv[1:], options=OPTIONS, description=__doc__)
    installed = packages()
    wrong = {name: found for name, found in installed["needed"].items() if not found["fits"]}
    found = installed | {"machine": machine()}
    if not wrong:
        found |= {"devices": devices(), "models": models(options.experiment)}
    print(json.dumps(found, indent=2) if options.json else "\n".join(_lines(found)))
    return 1 if wrong else 0


def packages() -> dict:
    """The packages that the library needs, and for each extra those that are missing."""
    from packaging.requirements import Requirement

    needed, extras = {}, {}
    for text in metadata.requires("stepreward") or []:
        requirement = Requirement(text)
        of = [name for name in metadata.metadata("stepreward").get_all("Provides-Extra") or [] if _only_with(requirement, name)]
        version = _version(requirement.name)
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        if not of and (requirement.marker is None or requirement.marker.evaluate()):
            needed[requirement.name] = {"version": version, "wanted": str(requirement.specifier), "fits": fits}
        for name in of:
            extras.setdefault(name, []).extend(_missing(requirement))
    return {"stepreward": _version("stepreward"), "needed": needed, "extras": extras}


def _missing(requirement) -> list[str]:
    """What is not installed of a requirement and of its own extras, such as those of `jax[cuda12]`."""
    from packaging.requirements import Requirement

    version = _version(requirement.name)
    if version is None or not requirement.specifier.contains(version, prereleases=True):
        return [f"{requirement.name}{requirement.specifier}"]
    inner = [Requirement(text) for text in metadata.requires(requirement.name) or []] if requirement.extras else []
    return [name for extra in requirement.extras for other in inner if _only_with(other, extra) for name in _missing(other)]


def _only_with(requirement, extra: str) -> bool:
    """Whether a requirement holds with this extra, and not without."""
    return (
        requirement.marker is not None and requirement.marker.evaluate({"extra": extra}) and not requirement.marker.evaluate({"extra": ""})
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def machine() -> dict:
    """Python, cores and memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None
    return {"python": platform.python_version(), "system": platform.platform(terse=True), "cores": os.cpu_count(), "memory_gib": memory}


def devices() -> dict:
    """What jax finds."""
    import jax

    from stepreward.training import fitting

    found = fitting.devices_here()
    return {
        "backend": jax.default_backend(),
        "count": found.count,
        "kind": found.name,
        "memory_gib": None if math.isinf(found.memory) else found.memory / fitting.GIB,
    }


def models(experiment: str) -> dict[str, str]:
    """For each published model, how a run of the experiment would train it on these devices, or why it would not.

    Raises:
      UserError: there is no such experiment.
    """
    from stepreward.config import load_config_file
    from stepreward.models.published import SOURCES
    from stepreward.training import fitting

    here = fitting.devices_here()
    if math.isinf(here.memory):  # a CPU, whose programs share the memory of the machine
        here = fitting.Devices(here.count, (machine()["memory_gib"] or math.inf) * fitting.GIB, here.name)
    found = {}
    for name in SOURCES:
        try:
            c = load_config_file(f"{experiment}:{name}")
            said = fitting.fit(c, here)[1] if c.mesh.fit else "adapters on frozen weights, with the settings for a laptop"
            found[name] = said.partition(": ")[2] or said
        except (UserError, ValueError) as error:
            found[name] = f"no: {error}"
    return found


def _lines(found: dict):
    of = found["machine"]
    memory = "" if of["memory_gib"] is None else f", {of['memory_gib']:.1f} GiB of memory"
    yield f"stepreward {found['stepreward']}, Python {of['python']}, {of['system']}, {of['cores']} cores{memory}"
    for name, package in found["needed"].items():
        if not package["fits"]:
            yield f"✗ {name} {package['version'] or 'is missing'}: {package['wanted']} is needed"
    yield "packages: " + ", ".join(f"{name} {package['version']}" for name, package in found["needed"].items() if package["fits"])
    yield "extras installed: " + (", ".join(sorted(name for name, missing in found["extras"].items() if not missing)) or "none")
    for name, missing in sorted(found["extras"].items()):
        if missing:
            yield f"extra not installed: {name} lacks {', '.join(missing)}; pip install 'stepreward[{name}]'"
    if "devices" in found:
        device = found["devices"]
        limit = "" if device["memory_gib"] is None else f", {device['memory_gib']:.1f} GiB each"
        yield f"devices: {device['count']} × {device['kind']} ({device['backend']}{limit})"
        for name, said in found["models"].items():
            yield f"model {name}: {said}"


if __name__ == "__main__":
    launcher(main)
