"""Mutation testing: changes one place of the code at a time, runs the most relevant tests, and counts the changes they notice.

    python experiments/mutate.py --seed=1 --count=100 --out=runs/mutations.jsonl
    python experiments/mutate.py --seed=1 --count=20 --only=envs,kernels --out=runs/mutations.jsonl
    python experiments/mutate.py --table --seed=1 --out=runs/mutations.jsonl
    python experiments/mutate.py --place=envs/sokoban/core.py:75 --out=runs/one.jsonl

A place is a line of code with one change from experiments/mutations.py. Places are drawn uniformly and without replacement, so
`--count=100` after `--count=20` with the same seed and areas continues the draw. Each change is made in a copy of the tree. Only the
two to five test files that import the changed module most closely run (--tests shows them), up to the first failure. A failing test
also runs on the unchanged code, and is excluded if it fails there. A line of the results is {"seed", "area", "place", "change",
"operator", "tests", "outcome", "by", "seconds"}. The outcome is

    noticed    a test failed, or the tests took more than --limit CPU seconds (then "by" is "time limit")
    survived   all tests passed
    broken     no test ran; the place is not counted

Changes that already have a line are not run again. A surviving change may be equivalent, which means that it changes no promised
behaviour (but speed, the size of a cache, or a case that cannot occur). Only a reader can decide that: `--equivalent=FILE` names a
file of lines "place: change | reason", which the table lists separately and does not count.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from functools import cache
from itertools import islice
from pathlib import Path

from mutations import Mutation, mutations

ROOT = Path(__file__).resolve().parent.parent
# The folder of each area.
AREAS = {"envs": "envs"} | {
    name: f"stepreward/{name}" for name in ("kernels", "credit", "training", "rollout", "models", "serve", "data", "report")
}
DRAWN = [area for area in AREAS if area != "report"]  # without the report, whose numbers are mostly sizes and colours
MOST_TESTS = 5
WAIT_S = 900.0  # seconds after which tests count as hanging, even if they use little CPU time
# Tests that use a module through another process, a fixture or a name, which the imports do not show.
ALSO = {
    "stepreward/credit/": ("test_credit_contract.py",),  # finds every method by its name
    "stepreward/serve/": ("test_serve.py",),
    "stepreward/rollout/environment_host.py": ("test_process_pool.py", "test_environments.py"),
    "stepreward/rollout/fork_server.py": ("test_process_pool.py",),
    "stepreward/training/learner.py": ("test_runner.py",),
    "stepreward/training/setup.py": ("test_runner.py", "test_environment_configs.py"),
    "stepreward/training/decisions.py": ("test_stages.py",),
    "stepreward/training/state.py": ("test_sharding.py",),  # on eight devices, in a process of its own
} | {
    f"envs/{name}/": (f"test_environment_episodes.py::test_episodes_are_the_same_for_ever[{name}-{preset}]", "test_environment_presets.py")
    for name, preset in (
        ("sokoban", "tiny"),
        ("webshop", "istar"),
        ("sotopia", "istar"),
        ("search_qa", "tiny"),
        ("alfworld", "tiny"),
        ("virtualhome", "istar"),
        ("textcraft", "istar"),
    )
}
# Slow tests: whole runs, other processes, and models of other packages. Chosen only if fewer than two other files use a module.
_SLOW = frozenset(f"test_{name}.py" for name in (
    "compile_tpu", "multihost", "pretrained_run", "environment_runs", "vision_run", "launch", "spa_runs", "spa_arms", "vision_parity",
    "sotopia_loopback", "sotopia_published", "preemption", "cloud",
))  # fmt: skip
_HEAVY = ("stepreward.training", "stepreward.serve", "stepreward.models", "stepreward.rollout.engine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="file for the results, outside the repository or under runs/")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw of places")
    parser.add_argument("--count", type=int, default=100, help="total number of places, including those of earlier calls")
    parser.add_argument("--only", default=",".join(DRAWN), help="comma-separated areas (%(default)s)")
    parser.add_argument("--place", help="instead of a draw, make every change on one line, given as file:line")
    parser.add_argument("--limit", type=float, default=400.0, help="CPU seconds for the tests of one change")
    parser.add_argument("--most", type=int, default=MOST_TESTS, help="maximum number of test files for a change, 2 to 5")
    parser.add_argument("--tests", action="store_true", help="print the drawn places and their test files, and run nothing")
    parser.add_argument("--table", action="store_true", help="print the results as tables, and run nothing")
    parser.add_argument("--equivalent", type=Path, help="file of survivors that a reader judged to be equivalent")
    options = parser.parse_args()
    if options.table:
        print(table(_read(options.out), options.seed, _equivalents(options.equivalent)))
        return
    areas = options.only.split(",")
    if unknown := sorted(set(areas) - set(AREAS)):
        parser.error(f"unknown area {', '.join(unknown)}; the areas are {', '.join(AREAS)}")
    places = _at(options.place) if options.place else draw(options.seed, options.count, areas)
    if options.tests:
        for file, mutation in places:
            print(f"{file}:{mutation.line}: {mutation}\n    {' '.join(relevant(file)[: options.most])}")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that running tests end, too
    options.out.parent.mkdir(parents=True, exist_ok=True)
    done = {(line["seed"], line["place"], line["change"]) for line in _read(options.out)}
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        trial = Trial(Path(folder), options.limit, options.most)
        for file, mutation in places:
            key = (options.seed, f"{file}:{mutation.line}", str(mutation))
            if key in done:
                continue
            outcome = {"seed": key[0], "area": _area(file), "place": key[1], "change": key[2], "operator": mutation.operator}
            outcome |= trial.run(file, mutation)
            with open(options.out, "a", encoding="utf-8") as out:
                out.write(json.dumps(outcome, ensure_ascii=False) + "\n")
            print(f"{outcome['outcome']:9} {key[1]}  {key[2]}  {outcome['by']}", flush=True)


def draw(seed: int, count: int, areas: list[str]) -> list[tuple[str, Mutation]]:
    """Draws (file, change) for `count` places: lines of code drawn uniformly, with one change for each."""
    lines = defaultdict(list)
    for area in sorted(areas):
        for file in _files(AREAS[area]):
            for mutation in _of(file):
                lines[file, mutation.line].append(mutation)
    rng = random.Random(seed)
    drawn = [(file, rng.choice(found)) for (file, _), found in sorted(lines.items())]
    rng.shuffle(drawn)
    return list(islice((one for one in drawn if _compiles(*one)), count))


def _compiles(file: str, mutation: Mutation) -> bool:
    try:
        compile(mutation.apply((ROOT / file).read_text(encoding="utf-8")), file, "exec")
    except SyntaxError:
        return False
    return True


class Trial:
    """A copy of the tree in which one change after another is made and undone."""

    def __init__(self, folder: Path, limit: float, most: int):
        self._folder, self._limit, self._most, self._unsound = folder, limit, most, {}
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
        ).stdout.decode()
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        self._time = time.time()

    def run(self, file: str, mutation: Mutation) -> dict:
        """Tests one change; returns {"tests", "outcome", "by", "seconds"}."""
        tests, path = relevant(file)[: self._most], self._folder / file
        source = path.read_text(encoding="utf-8")  # read from the copy, because the tree may change during the trial
        seconds, left_out = 0.0, []
        while True:
            self._write(path, mutation.apply(source))
            try:
                code, took, output = self._pytest([*tests, *(f"--deselect=tests/{test}" for test in left_out)])
            finally:
                self._write(path, source)
            seconds += took
            failed = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - .*)?$", output, re.MULTILINE)
            if code in (0, 5) or failed is None or not self._fails_unchanged(failed[1]):
                break
            if failed[1] in left_out:  # a file that cannot be collected cannot be deselected
                code = 5
                break
            left_out.append(failed[1])
        by = "" if code in (0, 5) else "time limit" if code is None else failed[1] if failed else f"exit code {code}"
        by += f" (left out: {', '.join(left_out)})" if left_out else ""
        outcome = {0: "survived", 5: "broken"}.get(code, "noticed")
        return {"tests": tests, "outcome": outcome, "by": by, "seconds": round(seconds, 1)}

    def _fails_unchanged(self, test: str) -> bool:
        """Whether a test also fails on the unchanged code."""
        if test not in self._unsound:
            self._unsound[test] = self._pytest([test])[0] not in (0, 5)
        return self._unsound[test]

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        # Python reuses a compiled module if the source's time (in seconds) and size match, so every version gets its own time.
        self._time += 2
        os.utime(path, (self._time, self._time))

    def _pytest(self, tests: list[str]) -> tuple[int | None, float, str]:
        """Runs pytest; returns (exit code, or None at a time limit; CPU seconds; output)."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider"]
        before = _processor_seconds()
        process = subprocess.Popen(
            [*command, *(test if test.startswith("-") else f"tests/{test}" for test in tests)],
            cwd=self._folder,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},  # import from the copy, not the tree
            # A limit on CPU time ends endless loops, and does not depend on other load on the machine.
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (int(self._limit), int(self._limit))),
        )
        try:
            output = process.communicate(timeout=WAIT_S)[0].decode(errors="replace")
            code = None if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL) else process.returncode
        except subprocess.TimeoutExpired:  # it waits for something
            output, code = "", None
        finally:
            _end(process)
        return code, _processor_seconds() - before, output


def _processor_seconds() -> float:
    """Returns the CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _end(process: subprocess.Popen) -> None:
    """Kills a process and everything it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def relevant(file: str) -> list[str]:
    """Returns the test files most relevant to a module, best first: at least two if there are two, and at most MOST_TESTS.

    A test file scores for importing the module, directly or indirectly, for using names from the module, and for a similar file
    name.
    """
    module, scores = _module(file), {}
    own = re.compile(rf"\b({'|'.join(map(re.escape, _defined(file)))})\b") if _defined(file) else None
    words = set(re.findall(r"[a-z]+", module.removeprefix("stepreward.").replace("hugging_face", "huggingface")))
    also = {test for prefix, tests in ALSO.items() if file.startswith(prefix) for test in tests}
    for name in sorted({path.name for path in (ROOT / "tests").glob("test_*.py")} | also):
        test = ROOT / "tests" / name.partition("::")[0]
        distance = _distances(test.name).get(module)
        # A test that trains or serves a model is slow and says little about an environment.
        heavy = file.startswith("envs/") and any(other.startswith(_HEAVY) for other in _imported(f"tests/{test.name}"))
        if not test.exists() or ((distance is None or heavy) and name not in also):
            continue
        text = test.read_text(encoding="utf-8")
        used = len(set(own.findall(text))) if own else 0
        alike = len(words & set(re.findall(r"[a-z]+", test.stem.replace("hugging_face", "huggingface").removeprefix("test_"))))
        near = 0 if distance is None else 1 / distance
        scores[name] = 3 * near + 2 * alike + 0.5 * min(used, 6) + 3 * (name in also)
    quick = [name for name in scores if name not in _SLOW]
    chosen = quick if len(quick) > 1 else list(scores)
    best = sorted(chosen, key=lambda name: (-scores[name], name))[:MOST_TESTS]
    return [name for name in best if scores[name] >= 0.4 * scores[best[0]] or name in best[:2]]


@cache
def _distances(test: str) -> dict[str, int]:
    """Returns the number of import steps from a test file to each module that it imports."""
    found, frontier, distance = {}, _imported(f"tests/{test}"), 1
    while frontier:
        found |= dict.fromkeys(frontier, distance)
        frontier = {name for module in frontier for name in _imported(_modules()[module])} - set(found)
        distance += 1
    return found


@cache
def _imported(file: str) -> frozenset[str]:
    """Returns this project's modules that a file imports, including those from which a package re-exports names."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found |= {inner} if inner in _modules() else {_exports(node.module).get(alias.name, node.module)}
    return frozenset(found & set(_modules()))


@cache
def _exports(package: str) -> dict[str, str]:
    """Maps the names that a package re-exports to the modules that define them."""
    file = _modules().get(package, "")
    if not file.endswith("__init__.py"):
        return {}
    nodes = [node for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: node.module for node in nodes for alias in node.names}


@cache
def _modules() -> dict[str, str]:
    """Maps each module to its file."""
    return {_module(file): file for top in ("stepreward", "envs", "launch") for file in _files(top)}


def _module(file: str) -> str:
    name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return name if name.partition(".")[0] == "stepreward" else f"stepreward.{name}"


@cache
def _defined(file: str) -> tuple[str, ...]:
    """Returns the names of a module's functions, classes and methods."""
    nodes = ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
    kinds = (ast.FunctionDef, ast.ClassDef)
    return tuple(sorted({n.name for n in nodes if isinstance(n, kinds) and not n.name.startswith("__") and len(n.name) > 3}))


@cache
def _files(folder: str) -> tuple[str, ...]:
    return tuple(sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py")))


@cache
def _of(file: str) -> tuple[Mutation, ...]:
    return tuple(mutations((ROOT / file).read_text(encoding="utf-8")))


def _at(place: str) -> list[tuple[str, Mutation]]:
    file, _, line = place.partition(":")
    return [(file, mutation) for mutation in _of(file) if not line or mutation.line == int(line)]


def _area(file: str) -> str:
    return next((area for area, folder in AREAS.items() if file.startswith(f"{folder}/")), "other")


def _read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def _equivalents(file: Path | None) -> dict[str, str]:
    """Reads the equivalent changes as {"place: change": reason}."""
    lines = file.read_text(encoding="utf-8").splitlines() if file else []
    return dict(line.rsplit(" | ", 1) for line in lines if line.strip() and not line.startswith("#"))


def table(lines: list[dict], seed: int, equivalent: dict[str, str]) -> str:
    """Writes the results in Markdown: counts by area, survivors, and equivalent changes."""
    counts = defaultdict(lambda: dict.fromkeys(("noticed", "survived", "equivalent", "broken"), 0))
    survivors, same = [], []
    for line in lines:
        if line["seed"] != seed:
            continue
        key = f"{line['place']}: {line['change']}"
        outcome = "equivalent" if line["outcome"] == "survived" and key in equivalent else line["outcome"]
        counts[line["area"]][outcome] += 1
        if outcome == "survived":
            survivors.append(f"* `{key}`")
        elif outcome == "equivalent":
            same.append(f"* `{key}`: {equivalent[key]}")
    total = {outcome: sum(count[outcome] for count in counts.values()) for outcome in ("noticed", "survived", "equivalent", "broken")}
    rows = ["| area | noticed | survived | equivalent | broken | noticed of those that count |", "|---|---|---|---|---|---|"]
    for area, count in [*sorted(counts.items()), ("all", total)]:
        of = count["noticed"] + count["survived"]
        share = f"{100 * count['noticed'] / of:.0f} %" if of else "–"
        rows.append(f"| {area} | {' | '.join(str(number) for number in count.values())} | {count['noticed']} of {of}, {share} |")
    parts = ["\n".join(rows)] + [
        f"{title}\n{chr(10).join(items)}" for title, items in (("Survivors", survivors), ("Equivalent", same)) if items
    ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
