"""The scenarios of the embedded world, and the seeded generator of tasks.

In a task, two people negotiate one issue. Its outcomes form a ladder from the best to the worst for the player; its rungs are
numbers (a price, days, evenings) or named choices (films, places). Only the partner knows its limit on the ladder, its mood and
which of three concerns it has. Tasks are drawn from `numpy.random.SeedSequence([split, seed])`. The checksum of a task's public
text decides its split, so the splits share no task.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np

SPLITS = ("train", "held_out")
HELD_OUT_SHARE = 5  # one task in five is held out

NAMES = (
    "Ada", "Ben", "Carla", "Dev", "Elif", "Femi", "Greta", "Hugo", "Ines", "Jonas", "Kofi", "Lena",
    "Mara", "Nils", "Olga", "Pavel", "Rosa", "Samir", "Tess", "Yuki",
)  # fmt: skip


class Topic(NamedTuple):
    """A concern that an argument may address: its word, other words by which it is recognised, and how the partner voices it."""

    word: str
    words: str
    voiced: str


class Scenario(NamedTuple):
    """The common part of all tasks of one kind.

    options: named choices, of which a task draws six; () if the outcomes are numbers. For numbers, best: possible best outcomes;
    step: possible differences between rungs, negative if the player wants much and positive if it wants little.
    """

    name: str
    scene: str
    want: str
    short: str
    unit: str
    money: bool
    best: tuple[int, ...]
    step: tuple[int, ...]
    options: tuple[str, ...]
    topics: tuple[Topic, Topic, Topic]
    secret: str
    secret_words: str


class Task(NamedTuple):
    """One task. The player sees all fields but concern, mood, limit and voice.

    ladder: labels of the outcomes, best for the player first. worth[i]: worth of rung i in hundredths, from 100 down to 0.
    topics: the order in which the player is told the scenario's topics. concern: index into the scenario's topics.
    limit: worth that the partner grants at first. voice: index of the partner's wording.
    """

    scenario: str
    you: str
    them: str
    ladder: tuple[str, ...]
    topics: tuple[int, ...]
    concern: int
    mood: str
    limit: int
    voice: int

    @property
    def worth(self) -> tuple[int, ...]:
        """The worth of each rung, in hundredths."""
        return tuple(100 - 100 * index // (len(self.ladder) - 1) for index in range(len(self.ladder)))


def _number(name, scene, want, short, unit, money, best, step, topics, secret, secret_words):
    return Scenario(name, scene, want, short, unit, money, best, step, (), topics, secret, secret_words)


def _choice(name, scene, want, short, options, topics, secret, secret_words):
    return Scenario(name, scene, want, short, "", False, (), (), options, topics, secret, secret_words)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        _number(
            "bike", "{you} is selling a used bicycle, and {them} has come to look at it.",
            "sell the bicycle for as much as you can", "sell high", "dollars", True,
            (90, 100, 120, 150, 180), (-5,),
            (Topic("brakes", "brake|safe|safety", "I would ride it to work, so what matters to me is the brakes"),
             Topic("lock", "theft|stolen|steal", "bikes vanish around here, so what matters to me is a lock"),
             Topic("delivery", "deliver|bring it|transport", "I have no way to get it home, so what matters to me is delivery")),
            "you are moving abroad and must be rid of it by Friday", "abroad|friday|moving away|must be rid|have to sell",
        ),
        _number(
            "car", "{you} wants to buy a small used car from {them}.",
            "buy the car for as little as you can", "buy low", "dollars", True,
            (2000, 2400, 3000, 3600), (50, 100),
            (Topic("cash", "pay at once|right away|paid in full", "I was paid late once, so what matters to me is cash"),
             Topic("care", "look after|good home|maintain", "it was with me for years, so what matters to me is care"),
             Topic("speed", "today|quick|fast|collect", "I need the parking space, so what matters to me is speed")),
            "you would pay almost anything, because your own car broke down", "broke down|pay anything|desperate|own car",
        ),
        _number(
            "salary", "{you} talks with {them}, who leads the team, about a yearly raise.",
            "get as high a raise as you can", "raise high", "dollars", True,
            (4000, 5000, 6000, 8000), (-200, -300),
            (Topic("results", "result|achieved|delivered|success", "I must defend it upstairs, so what matters to me is results"),
             Topic("loyalty", "loyal|stay|long term|years to come", "people keep leaving us, so what matters to me is loyalty"),
             Topic("training", "train|teach|mentor|newcomer", "the newcomers are lost, so what matters to me is training")),
            "you have no other offer and would stay in any case", "no other offer|stay anyway|stay in any case|nowhere else",
        ),
        _number(
            "loan", "{you} asks {them}, an old friend, to lend some money.",
            "borrow as much as you can", "borrow high", "dollars", True,
            (300, 400, 500, 600), (-20, -25),
            (Topic("date", "pay back|repay|payback|by the end of", "my own rent is due soon, so what matters to me is a date"),
             Topic("paper", "in writing|written|sign|contract", "I forget such things, so what matters to me is paper"),
             Topic("purpose", "course|use it for|spend it on", "I have seen money wasted, so what matters to me is the purpose")),
            "you lost your last savings at cards", "cards|gambl|poker|casino|lost my savings",
        ),
        _number(
            "rent", "{you} talks with {them}, the owner of the flat, about next year's rent.",
            "pay as little rent as you can", "pay low", "dollars", True,
            (600, 700, 800, 900), (10, 20),
            (Topic("repairs", "repair|fix|paint", "the flat is getting old, so what matters to me is repairs"),
             Topic("quiet", "noise|calm|peaceful", "the neighbours complain, so what matters to me is quiet"),
             Topic("years", "stay|long|two years|lease", "empty months cost me most, so what matters to me is years")),
            "you have already signed for another year at work nearby and cannot move", "cannot move|can't move|already signed",
        ),
        _number(
            "donation", "{you} collects for a village library and has rung the bell of {them}.",
            "collect as large a gift as you can", "collect high", "dollars", True,
            (100, 120, 150, 200), (-5, -10),
            (Topic("children", "child|kids|school|pupil", "I was a teacher, so what matters to me is children"),
             Topic("proof", "receipt|accounts|where the money", "one hears of fraud, so what matters to me is proof"),
             Topic("plaque", "named|mention|honour|sign at the door", "I like my name, so what matters to me is a plaque")),
            "a tenth of every gift goes to you as pay", "tenth|commission|my pay|i get paid",
        ),
        _number(
            "cooking", "{you} and {them} share a flat and split the evenings of cooking in a month.",
            "have {them} cook as many evenings as you can", "they cook much", "evenings", False,
            (20, 22, 24), (-1,),
            (Topic("shopping", "shop|groceries|supermarket", "I carry all the bags, so what matters to me is the shopping"),
             Topic("dishes", "dish|wash|clean up|cleaning", "the sink is always full, so what matters to me is the dishes"),
             Topic("money", "pay for|cost|ingredients", "food has become dear, so what matters to me is money")),
            "you like cooking and only want free evenings for a new game", "game|like cooking|enjoy cooking|love cooking",
        ),
        _number(
            "noise", "{them} plays the drums in the room next to that of {you}.",
            "get as many quiet evenings a month as you can", "quiet high", "evenings", False,
            (22, 24, 26), (-1, -2),
            (Topic("concert", "show|gig|stage", "we play in June, so what matters to me is the concert"),
             Topic("cellar", "basement|other room|downstairs", "I have no other place, so what matters to me is the cellar"),
             Topic("weekend", "saturday|sunday", "I only want some time of my own, so what matters to me is the weekend")),
            "you have already complained to the owner in secret", "complained|told the owner|landlord",
        ),
        _number(
            "deadline", "{you} asks {them}, the client, for more days to finish a report.",
            "get as many extra days as you can", "days high", "days", False,
            (15, 18, 20, 24), (-1,),
            (Topic("quality", "better|thorough|careful|errors", "the last report had errors, so what matters to me is quality"),
             Topic("draft", "early version|preview|first part", "my board meets on Monday, so what matters to me is a draft"),
             Topic("budget", "cost|price|free of charge|no extra", "we are short of funds, so what matters to me is the budget")),
            "you have not begun to write", "not begun|not started|haven't started|haven't begun|nothing written",
        ),
        _choice(
            "film", "{you} and {them} have one evening and want to see a film together.",
            "see a film as high on your list as you can", "best first",
            ("western", "comedy", "thriller", "musical", "drama", "horror", "cartoon", "romance"),
            (Topic("length", "long|short|early|late", "I get up at five, so what matters to me is the length"),
             Topic("snacks", "popcorn|drinks|food", "I have not eaten all day, so what matters to me is snacks"),
             Topic("seats", "seat|row|sofa|comfortable", "my back hurts, so what matters to me is the seats")),
            "you have seen your favourite before and only want to impress {them}", "seen it before|seen it already|impress",
        ),
        _choice(
            "holiday", "{you} and {them} plan a holiday together.",
            "travel to a place as high on your list as you can", "best first",
            ("beach", "mountains", "city", "desert", "island", "lake", "forest", "castle"),
            (Topic("cost", "cheap|price|afford|budget", "I have saved little, so what matters to me is the cost"),
             Topic("sun", "warm|weather|sunny", "the winter was grey, so what matters to me is the sun"),
             Topic("train", "flight|fly|rail|journey", "I am afraid of flying, so what matters to me is the train")),
            "you hope to meet an old love there", "old love|my ex|meet someone",
        ),
        _choice(
            "dinner", "{you} and {them} choose where to have dinner.",
            "eat at a place as high on your list as you can", "best first",
            ("thai", "pizza", "curry", "sushi", "tapas", "ramen", "burgers", "falafel"),
            (Topic("near", "close|walk|distance|around the corner", "my feet hurt, so what matters to me is a place near by"),
             Topic("bill", "pay|treat|cheap|on me", "I am short this month, so what matters to me is the bill"),
             Topic("vegan", "vegetable|meat|vegetarian|plants", "I eat no animals, so what matters to me is a vegan dish")),
            "you have a voucher for it and will keep what is left", "voucher|coupon|gift card",
        ),
    )
}  # fmt: skip

MOODS = ("warm", "brisk", "touchy")
CHOICES = 6  # rungs of a ladder of named choices
RUNGS = 11  # rungs of a ladder of numbers


def task_for(seed: int, split: str = "train", names: tuple[str, ...] | None = None) -> Task:
    """Returns the task of a seed: the first task of its random stream that belongs to `split`.

    names: scenarios to draw from; None for all. Raises ValueError for an unknown split or a negative seed.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    if seed < 0:
        raise ValueError(f"seed={seed!r}: give a whole number, at least 0")
    names = tuple(SCENARIOS) if names is None else names
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([SPLITS.index(split), seed])))
    while True:
        task = _draw(generator, names)
        if split_of(task) == split:
            return task


def split_of(task: Task) -> str:
    """Returns the split of a task, from the checksum of the player's description."""
    held_out = zlib.crc32(describe(task).encode()) % HELD_OUT_SHARE == 0
    return "held_out" if held_out else "train"


def _draw(generator: np.random.Generator, names: tuple[str, ...]) -> Task:
    def pick(values):
        return values[int(generator.integers(len(values)))]

    scenario = SCENARIOS[pick(names)]
    you, them = (NAMES[index] for index in generator.choice(len(NAMES), size=2, replace=False).tolist())
    if scenario.options:
        chosen = generator.permutation(len(scenario.options))[:CHOICES].tolist()
        ladder = tuple(scenario.options[index] for index in chosen)
    else:
        best, step = pick(scenario.best), pick(scenario.step)
        ladder = tuple(str(best + step * index) for index in range(RUNGS))
    topics = tuple(generator.permutation(3).tolist())
    concern, mood = int(generator.integers(3)), pick(MOODS)
    limit, voice = int(generator.integers(24, 52)), int(generator.integers(3))
    return Task(scenario.name, you, them, ladder, topics, concern, mood, limit, voice)


def topic_words(task: Task) -> tuple[str, ...]:
    """Returns the words of the task's three topics, in the order in which the player is told them."""
    topics = SCENARIOS[task.scenario].topics
    return tuple(topics[index].word for index in task.topics)


def describe(task: Task, style: str = "full") -> str:
    """Describes the task to the player: scene, goal, arguments and secret; style "short" is terse and omits the secret."""
    scenario = SCENARIOS[task.scenario]
    words = ", ".join(topic_words(task))
    if style == "short":
        return f"{scenario.name}. {scenario.short}. {' '.join(task.ladder)}. reasons {words}"
    names = {"you": task.you, "them": task.them}
    if scenario.options:
        range_ = f"Your list, the best first: {', '.join(task.ladder)}."
    else:
        range_ = f"The best that you can hope for is {task.ladder[0]} {scenario.unit}; {task.ladder[-1]} is hardly worth it."
    return (
        f"You are {task.you}. {scenario.scene.format(**names)}\n"
        f"Your private goal: {scenario.want.format(**names)}, and stay on good terms. {range_}\n"
        f"You can argue with: {words}.\n"
        f"Your secret, which {task.them} must not learn: {scenario.secret.format(**names)}."
    )
