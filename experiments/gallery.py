"""Writes what the method gallery shows of each method: its formula, needs and command into docs/gallery.md, its picture into docs/images/gallery/.

    python experiments/gallery.py            # names the methods whose part is missing or old
    python experiments/gallery.py --write    # writes the parts and the pictures

The methods are those of the registries. Formulas come from the tables of docs/methods.md and docs/preference.md, needs from the methods
themselves, costs from docs/methods.md, curves from docs/data/arena_curves.csv (`experiments/gallery_curves.py`) and docs/log.md. The text
above each part is written by hand.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from pathlib import Path

import method_runs
from pages import replace_parts

from stepreward import credit, preference
from stepreward.metrics import write_atomically
from stepreward.training import needs

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGE, PICTURES = DOCS / "gallery.md", DOCS / "images" / "gallery"
TASKS = {"key_door_5": "key_door_5: a subgoal far from the end", "ice": "ice: chance"}
# The section of docs/releases.md about a method, where there is one.
RELEASES = {
    "spa": "spa-rl-paper-and-public-release",
    "istar": "istar-paper-and-public-release",
    "prime": "prime-paper-and-public-release",
    "gigpo": "gigpo-paper-and-public-release",
    "hgpo": "hgpo-paper-and-public-release",
    "igpo": "igpo-paper-and-public-release",
    "rlvmr": "rlvmr-paper-and-public-release",
    "ard": "adaptive-reward-design-paper-and-public-release",
    "rbt": "rbt-an-estimator-that-reads-both-directions",
    **dict.fromkeys(("agentprm", "agentprm_mc"), "agentprm-two-papers"),
    **dict.fromkeys(("turn_return", "mt_grpo"), "mt-grpo-and-turn-rewards"),
    **dict.fromkeys(("vineppo", "spo", "treerpo", "arpo"), "vineppo-spo-treerpo-and-arpo-rollouts-that-branch"),
    **dict.fromkeys(("stepagent", "reward_phasing", "temporal_phasing"), "stepagent-and-task-phasing-an-expert-beside-the-policy"),
    **dict.fromkeys(("ppr", "salt", "hcapo", "progress_advantage"), "ppr-salt-style-credit-hcapo-progress-advantage"),
}
# matplotlib draws in these colours; in the file each is a variable that follows the reader's light or dark mode.
INK, FAINT, MINE = "#010101", "#020202", "#030303"
THEME = {INK: ("ink", "#24292f", "#e2e4e9"), FAINT: ("faint", "#6e7781", "#9aa0ab"), MINE: ("mine", "#b3541e", "#ffb27d")}
CARD = ("#ffffff", "#1e2129")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/gallery.md and docs/images/gallery")
    options = parser.parse_args()
    found = parts()
    if options.write:
        replace_parts(PAGE, found)
        draw_all()
        return 0
    old = missing(found, PAGE.read_text(encoding="utf-8"))
    print(f"missing or old: {', '.join(old)}" if old else "the gallery is complete")
    return 1 if old else 0


def missing(found: dict[str, str], text: str) -> list[str]:
    """Names of the parts that the page lacks, or has with another content."""
    return [name for name, part in found.items() if f"<!-- {name} -->\n\n{part}\n<!-- end of {name} -->" not in text]


def parts() -> dict[str, str]:
    """The parts of the page, by the names of their marks: the two indices, and one part a method."""
    found = {"index": index(), "preference index": preference_index()}
    rows = {row.name: row for row in needs.credit_rows()}
    found |= {name: credit_part(name, rows[name]) for name in credit.names()}
    rows = {row.name: row for row in needs.preference_rows()}
    return found | {f"preference {name}": preference_part(name, rows[name]) for name in preference.names()}


# --- Text ---


def index() -> str:
    """A table of all credit methods, sorted by name."""
    lines = ["| method | source | models beside the policy | the environment must offer | steps played, RLOO = 1 | arena, mean success |"]
    lines.append("|---|---|---|---|---|---|")
    sources, arena = table("methods.md", "name"), arena_means()
    for row in needs.credit_rows():
        source = linked(sources[row.name]["source"])
        cells = [f"[`{row.name}`](#{row.name})", source, ", ".join(row.models) or "–", ", ".join(row.needs) or "–", cost(row.name)]
        lines.append(f"| {' | '.join(cells)} | {arena[row.name]:.2f} |" if row.name in arena else f"| {' | '.join(cells)} | – |")
    return "\n".join(lines) + "\n"


def preference_index() -> str:
    """A table of all preference methods, sorted by name."""
    sources = table("preference.md", "`preference.method`")
    lines = ["| method | source | the environment must offer |", "|---|---|---|"]
    for row in needs.preference_rows():
        lines.append(f"| [`{row.name}`](#preference-{row.name}) | {linked(sources[row.name]['source'])} | {', '.join(row.needs) or '–'} |")
    return "\n".join(lines) + "\n"


def credit_part(name: str, row: needs.Row) -> str:
    """What the page shows of a credit method."""
    about = table("methods.md", "name")[name]
    facts = [
        ("advantage", about["advantage"]),
        ("source", linked(about["source"])),
        ("signals", ", ".join(f"`{signal}`" for signal in row.signals) or "none beside outcomes"),
        ("models beside the policy", ", ".join(row.models) or "none"),
        ("the environment must offer", ", ".join(row.needs) or "nothing special"),
        ("environment steps, RLOO = 1", cost(name)),
    ]
    if name in RELEASES:
        facts.append(("paper and release", f"[differences and options](releases.md#{RELEASES[name]})"))
    shown = credit.make(name)
    keys = [f"credit.method={name}", *method_runs.settings(shown, "runs/trained")]
    flags = [f"--config=configs/{method_runs.experiment(shown)}.py", *(f"--config.{key}" for key in keys)]
    picture = f"![Success in the arena: {name}, RLOO and the exact advantage](images/gallery/{name}.svg)\n\n"
    return f"{picture}{_facts(facts)}\n{_command(flags)}"


def preference_part(name: str, row: needs.Row) -> str:
    """What the page shows of a preference method."""
    about = table("preference.md", "`preference.method`")[name]
    facts = [
        ("pairs", about["pairs"]),
        ("source", linked(about["source"])),
        ("the environment must offer", ", ".join(row.needs) or "nothing special"),
        ("rounds; β; weight of imitation", about["rounds, β, sft"]),
        ("played in a round", about["played in a round, beside the expert"]),
        ("paper and release", "[differences and options](preference.md#papers-and-their-releases)"),
    ]
    picture = f"![Success on WebShop: {name} and the other preference methods](images/gallery/preference_{name}.svg)\n\n"
    return f"{picture}{_facts(facts)}\n{_command(['--config=configs/istar_webshop.py', f'--config.preference.method={name}'])}"


def _facts(facts: list[tuple[str, str]]) -> str:
    (first, value), *rest = facts
    return f"| {first} | {value} |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rest)


def _command(flags: list[str]) -> str:
    lines = ["python launch/train.py"]
    for flag in flags:
        if len(lines[-1]) + len(flag) > 118:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {flag}"
    return "```\n" + "\n".join(lines) + "\n```\n"


def table(page: str, first: str) -> dict[str, dict[str, str]]:
    """The rows of the first table of a page whose first title is `first`, by the name in their first cell."""
    lines = (DOCS / page).read_text(encoding="utf-8").split("\n")
    at = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    titles, found = _cells(lines[at]), {}
    for line in lines[at + 2 :]:
        if not line.startswith("|"):
            break
        row = _cells(line)
        found[row[0].strip("`")] = dict(zip(titles, row, strict=True))
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")]


def linked(source: str) -> str:
    """The source with each arXiv number as a link."""
    return re.sub(r"(?:arXiv )?(\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)


def cost(name: str) -> str:
    """Environment steps of one iteration over those of RLOO, as docs/methods.md has them."""
    return table("methods.md", "method").get(name, {}).get("steps", "not measured")


def arena_means() -> dict[str, float]:
    """The mean success of each arm over the arena's tasks."""
    found: dict[str, list[float]] = {}
    for row in _read("arena.csv"):
        found.setdefault(row["arm"], []).append(float(row["mean"]))
    return {name: sum(values) / len(values) for name, values in found.items()}


def _read(name: str) -> list[dict[str, str]]:
    with open(DOCS / "data" / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- Pictures ---


def draw_all() -> None:
    """Writes a picture for each method."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    curves = _read("arena_curves.csv")
    for name in credit.names():
        write_atomically(PICTURES / f"{name}.svg", draw_curves(name, curves))
    runs = preference_runs()
    for name in preference.names():
        write_atomically(PICTURES / f"preference_{name}.svg", draw_preference(name, runs))


def draw_curves(name: str, curves: list[dict[str, str]]) -> str:
    """The method's success over environment steps on two tasks of the arena, with RLOO's and the oracle's; an SVG."""
    import matplotlib.pyplot as plt

    with plt.rc_context(_style()):
        figure, axes = plt.subplots(1, len(TASKS), figsize=(6.4, 2.3), layout="constrained", sharey=True)
        for axis, (task, title) in zip(axes, TASKS.items(), strict=True):
            beside = [row for row in (("oracle", FAINT, ":"), ("rloo", FAINT, "-")) if row[0] != name]
            for arm, colour, line in (*beside, (name, MINE, "-")):
                points = [row for row in curves if (row["task"], row["arm"]) == (task, arm)]
                if not points:
                    continue
                x, y, half = ([float(row[key]) for row in points] for key in ("steps", "success", "half_width"))
                label = {"oracle": "exact advantage (oracle)", "rloo": "RLOO"}[arm] if arm != name else name
                axis.plot([v / 1000 for v in x], y, line, color=colour, label=label, linewidth=1.6 if arm == name else 1.2)
                if arm == name:
                    low, high = [a - b for a, b in zip(y, half)], [a + b for a, b in zip(y, half)]
                    axis.fill_between([v / 1000 for v in x], low, high, color=colour, alpha=0.2, linewidth=0)
            axis.set_title(title, fontsize=8, color=INK, loc="left")
            axis.set_xlabel("environment steps, thousands", fontsize=7.5)
            axis.set_ylim(0, 1.02)
        axes[0].set_ylabel("success", fontsize=7.5)
        axes[-1].legend(fontsize=7, frameon=False, loc="lower right", labelcolor=INK)
        return _svg(figure)


# Titles in the table of docs/log.md → method. The first rows have the methods' defaults.
_LOGGED = {"ETO": "eto", "StepAgent": "stepagent", "online DPO": "online_dpo", "CSO": "cso", "IPR": "ipr", "RRO": "rro"}


def preference_runs() -> list[tuple[str, str, list[float]]]:
    """(method, settings, success in percent at the start and after each round) of each row of the table in docs/log.md."""
    found = []
    for title, row in _rows("log.md", "| method | success, start → rounds 1, 2 (%) |"):
        name = next((method for start, method in _LOGGED.items() if title.startswith(start)), None)
        if name and "judge" not in title:
            seen = any(method == name for method, _, _ in found)
            settings = "reference of the round, imitation 0.1" if seen else "default loss"
            found.append((name, settings, [float(value) for value in re.findall(r"\d+\.\d+", row)]))
    return found


def _rows(page: str, start: str):
    lines = (DOCS / page).read_text(encoding="utf-8").split("\n")
    at = next(i for i, line in enumerate(lines) if line.startswith(start))
    for line in lines[at + 2 :]:
        if not line.startswith("|"):
            return
        yield tuple(_cells(line)[:2])


def draw_preference(name: str, runs: list[tuple[str, str, list[float]]]) -> str:
    """The method's success on WebShop after each round, with those of the other methods; an SVG."""
    import matplotlib.pyplot as plt

    with plt.rc_context(_style()):
        figure, axis = plt.subplots(figsize=(4.4, 2.3), layout="constrained")
        for method, settings, success in sorted(runs, key=lambda run: run[0] == name):
            mine, solid = method == name, settings == "default loss"
            label = settings if mine else None
            colour, width = (MINE, 1.6) if mine else (FAINT, 0.6)
            axis.plot(
                range(len(success)), success, "-" if solid else "--", color=colour, linewidth=width, label=label, marker="o", markersize=2
            )
        axis.plot([], [], color=FAINT, linewidth=0.6, label="the other methods")
        axis.set_xticks([0, 1, 2], ["warm start", "round 1", "round 2"])
        axis.set_title(f"{name} on WebShop's embedded shop, one seed", fontsize=8, color=INK, loc="left")
        axis.set_ylabel("success, %", fontsize=7.5)
        axis.legend(fontsize=7, frameon=False, loc="lower left", labelcolor=INK)
        return _svg(figure)


def _style() -> dict:
    quiet = {f"{axis}tick.{what}": value for axis in "xy" for what, value in (("color", FAINT), ("labelcolor", INK), ("labelsize", 7))}
    more = {"axes.edgecolor": FAINT, "axes.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False}
    return quiet | more | {"svg.fonttype": "none", "svg.hashsalt": "gallery", "font.family": "sans-serif", "path.simplify": True}


def _svg(figure) -> str:
    import matplotlib.pyplot as plt

    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = re.sub(r"<metadata>.*?</metadata>|<\?xml[^>]*\?>|<!DOCTYPE[^>]*>|<!--.*?-->", "", stream.getvalue(), flags=re.DOTALL)
    text = re.sub(r"(\d+\.\d\d)\d+", r"\1", text)  # a hundredth of a point is enough
    text = re.sub(r"font-family: [^;]*;", "font-family: sans-serif;", text)
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    text = re.sub(
        r"stroke-linejoin: miter; |stroke-linecap: square; ?| id=\"(?:text|line2d|xtick|ytick|matplotlib\.axis|patch|axes|legend|figure)_\d+\"",
        "",
        text,
    )
    text = re.sub(r"\s*\n\s*", "\n", text)
    for drawn, (name, _, _) in THEME.items():
        text = text.replace(drawn, f"var(--{name})")
    light = "".join(f"--{name}:{light};" for name, light, _ in THEME.values()) + f"background:{CARD[0]}"
    dark = "".join(f"--{name}:{dark};" for name, _, dark in THEME.values()) + f"background:{CARD[1]}"
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    return re.sub(r"(<svg[^>]*>)", lambda found: found[1] + style, text, count=1).strip() + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
