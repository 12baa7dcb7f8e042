"""The words of a run: the chat template of a pretrained model, or a plain chat with a tokenizer that is trained for its environments."""

from __future__ import annotations

import json
import os
import string
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stepreward import processes
from stepreward.data.demonstrations import Demonstration
from stepreward.envs.protocol import Prompt
from stepreward.models import presets
from stepreward.models.published import LAPTOP, SOURCES
from stepreward.models.tokenizer import load_tokenizer, train_piece_tokenizer, train_symbol_tokenizer
from stepreward.rollout.chat import Chat, Dialogue
from stepreward.rollout.template_chat import load_chat


class Spoken(NamedTuple):
    """What is said in one environment.

    Attributes:
      demonstrations: its episodes.
      prompt: its prompt.
    """

    demonstrations: list[Demonstration]
    prompt: Prompt


class _Texts(NamedTuple):
    """The texts of one environment: everything shown, the actions, fixed words of the prompt, and all demonstrated answers in order."""

    shown: set[str]
    actions: list[str]
    fixed: tuple[str, ...]
    answers: list[str]


def load_words(c, model_folder: Path | None, folder: Path, spoken: Sequence[Spoken]) -> Dialogue:
    """Returns the run's dialogue: the chat template of its pretrained model, or a plain chat with a tokenizer trained for its environments.

    Args:
      model_folder: the pretrained model; None trains a tokenizer in `folder`, or reads the one there.
      spoken: demonstrations and prompt of each environment.

    Raises:
      ValueError: without a model folder, the config sets a key that needs one.
    """
    system, thinking = c.model.system or None, c.model.thinking
    if model_folder is not None:
        return load_chat(model_folder, system, thinking)
    if system is not None or thinking is not None:
        raise ValueError("model.system and model.thinking need the chat template of a pretrained model: set model.path too.")
    if c.model.preset in presets.PUBLISHED:
        cached = "" if c.model.preset in LAPTOP else " if the hub cache has it (--config.model.download=True downloads it)"
        raise ValueError(
            f"model.preset={c.model.preset!r} needs the tokenizer and weights of a model folder: set --config.model.path=FOLDER, or "
            f"--config.model.path={SOURCES[c.model.preset]}{cached}."
        )
    sees = presets.PRESETS[c.model.preset].vision is not None
    processes.on_writer(lambda: make_codec(folder, spoken, c.model.pieces, images=sees))
    return Chat(processes.together(lambda: load_tokenizer(folder)))


def make_codec(folder: Path, spoken: Sequence[Spoken], pieces: int = 0, *, images: bool = False) -> None:
    """Trains the workdir's tokenizer on the texts of the environments and their prompts, unless there is one.

    Args:
      pieces: size of a vocabulary of word pieces; 0 makes one token per action and one for each other character.
      images: whether messages may contain images.
    """
    if folder.exists():
        return
    found = [_texts(*each) for each in spoken]
    shown = set().union(*(texts.shown for texts in found))
    said = [answer for texts in found for answer in texts.answers]
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")  # a killed run must not leave a partial tokenizer
    if pieces:
        # With repetitions: pieces are learnt from frequencies. No demonstration may show some of the prompt's words.
        fixed = [word for texts, each in zip(found, spoken) for word in texts.fixed * len(each[0])]
        train_piece_tokenizer([*sorted(shown), *said, *fixed], pieces, temporary, images=images)
    else:
        answers = {*said, *(prompt.answer(word) for texts, (_, prompt) in zip(found, spoken) for word in texts.actions)}
        whole = dict.fromkeys(word for texts in found for word in (*texts.actions, *texts.fixed))  # without repetitions
        train_symbol_tokenizer(sorted(shown | answers), list(whole), temporary, images=images)
    temporary.rename(folder)


def _texts(demonstrations: list[Demonstration], prompt: Prompt) -> _Texts:
    views = {json.dumps(view, sort_keys=True): view for d in demonstrations for view in map(d.view, range(len(d.observations)))}
    words = {a for d in demonstrations for a in d.actions}
    shown = [views[key] for key in sorted(views)]
    texts = {say(view) for view in shown for say in (prompt.first, prompt.later)} | {view["text"] for view in shown}
    if not any(d.success for d in demonstrations):  # no example of a good answer: allow every listed action, and any text
        words |= {action for view in shown for action in view.get("admissible", ()) if action}
        texts.add(string.printable)
    words, fixed = sorted(words), tuple(getattr(prompt, "words", ()))
    if getattr(prompt, "reference", None) is not None:
        texts |= {part for word in words for part in prompt.reference(word)}
    history = [(shown[0], prompt.answer(words[0] if words else shown[0]["text"]))]
    texts |= {prompt.window(view, history) for view in shown[:200]}
    said = [d.answer(prompt, index) for d in demonstrations for index in range(len(d.actions))]
    return _Texts(texts, words, fixed, said)
