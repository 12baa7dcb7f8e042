"""Loads the model that a server serves: a run's checkpoint, or the folder of a pretrained model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stepreward import processes
from stepreward.errors import UserError
from stepreward.models import decoder, presets
from stepreward.models.pretrained_tokenizer import PretrainedCodec, load_pretrained_tokenizer
from stepreward.rollout.chat import Chat
from stepreward.rollout.template_chat import TemplateChat
from stepreward.serve.conversation import Conversations
from stepreward.serve.engine import ServingEngine, make_engine

FOLDER_LENGTH = 4096  # default limit on the tokens of a conversation with a pretrained model


@dataclasses.dataclass
class Served:
    """A model that is ready to answer requests.

    Attributes:
      name: the model's name in requests and responses.
      engine: the engine that decodes.
      params: parameters as returned by `engine.prepare`.
      conversations: encodes messages as prompts.
      text_of: decodes sampled tokens to text.
      max_tokens: most tokens of an answer that a request may ask for.
      temperature, top_k, top_p: defaults for requests that do not set them.
    """

    name: str
    engine: ServingEngine
    params: Any
    conversations: Conversations
    text_of: Callable[[np.ndarray], str]
    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def load_run(
    workdir: str | Path, step: int | None = None, which: str = "policy", *, name: str | None = None,
    max_length: int | None = None, max_tokens: int | None = None,
) -> Served:  # fmt: skip
    """Loads a run's policy, PRM or initial policy, with the run's chat format and sampling settings.

    Args:
      workdir, step, which: see `load_checkpoint`.
      name: the model's name for clients; by default the workdir's name.
      max_length: most tokens of a prompt and its answer together; by default `rollout.max_row_tokens`.
      max_tokens: most tokens of an answer; by default `rollout.max_answer_tokens`.

    Raises:
      UserError, FileNotFoundError, ValueError: if the run cannot be loaded, or a limit is invalid.
    """
    from stepreward.training import backbones
    from stepreward.training.evaluate import load_checkpoint

    found = load_checkpoint(workdir, step, which)
    found.parts.collector.pool.close()  # a server plays no episodes
    if processes.count() > 1:
        raise UserError(
            f"a server runs in one process, but this job has {processes.count()}: unset the variables that join it to other processes"
        )
    c, parts, rollout = found.config, found.parts, found.config.rollout
    length, longest = _limits(max_length or rollout.max_row_tokens, max_tokens or rollout.max_answer_tokens)
    trained, lora = parts.collector.engine, backbones.lora_config(c)
    engine = make_engine(
        found.model.graphdef,
        found.model.config,
        parts.chat.stop_ids,
        parts.chat.codec.pad_id,
        length,
        sharding=trained.sharding,
        rows_multiple=trained.rows_multiple,
        lora=lora,
    )
    params = engine.prepare(found.model.join(found.params))
    name = name or Path(workdir).resolve().name
    conversations = _conversations(parts.chat, c.model.system or None, c.model.thinking, name)
    return Served(name, engine, params, conversations, parts.chat.text, longest, rollout.temperature, rollout.top_k, rollout.top_p)


def load_folder(
    model: str | Path, *, dtype: str = "bfloat16", name: str | None = None, max_length: int | None = None,
    max_tokens: int | None = None,
) -> Served:  # fmt: skip
    """Loads a model of the Llama or Qwen family from a Hugging Face folder, with the chat template of that folder.

    Args:
      model: a folder, or the name of a model in the hub's local cache.
      dtype: dtype of weights and computation, `bfloat16` or `float32`.
      name: the model's name for clients; by default the folder's name.
      max_length: most tokens of a prompt and its answer together; by default 4096, or the model's own limit if that is less.
      max_tokens: most tokens of an answer; by default half of `max_length`.

    Raises:
      UserError, FileNotFoundError, ValueError: if the folder cannot be loaded, or a limit is invalid.
    """
    from stepreward.models import hugging_face
    from stepreward.training.main_job import use_compilation_cache

    use_compilation_cache()
    folder = hugging_face.find_folder(model)
    hub = hugging_face.read_config(folder)
    if max_length and max_length > hub.max_length:
        raise UserError(f"--max-length={max_length} is too long: the limit of {str(model)!r} is {hub.max_length} tokens")
    length = max_length or min(FOLDER_LENGTH, hub.max_length)
    length, longest = _limits(length, max_tokens or length // 2)
    chat = TemplateChat(load_pretrained_tokenizer(folder))
    kind = presets.dtype(dtype)
    config = hub.decoder(compute_dtype=kind, param_dtype=kind)
    if chat.codec.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer in {str(model)!r} has {chat.codec.vocab_size} tokens, but the model has only {config.vocab_size}: give a "
            "folder whose tokenizer belongs to its model"
        )
    params = hugging_face.load_params(folder, config)
    engine = make_engine(decoder.graph(config), config, chat.stop_ids, chat.codec.pad_id, length)
    name = name or Path(model).resolve().name
    conversations = _conversations(chat, None, None, name)
    return Served(name, engine, engine.prepare(params), conversations, chat.text, longest)


def _limits(length: int, longest: int) -> tuple[int, int]:
    if not 0 < longest < length:
        raise UserError(f"--max-tokens={longest} must be at least 1 and less than --max-length={length}")
    return length, longest


def _conversations(chat: Chat | TemplateChat, system: str | None, thinking: bool | None, name: str) -> Conversations:
    """Makes chat forms on demand; what a client does not set is as in the run. Errors name the model, never this machine's folders."""
    spare: list[PretrainedCodec] = []  # a second tokenizer, loaded when a client first sets a system message or thinking mode

    def form(said: str | None, thinks: bool | None):
        if said is None and thinks is None:
            return chat
        if isinstance(chat, Chat):
            raise ValueError("this model was trained from scratch and has neither system messages nor a thinking mode: leave them out.")
        try:
            # Making a form changes settings of its tokenizer, and other threads are using the first one.
            spare[:] = spare or [load_pretrained_tokenizer(chat.codec.folder)]
            made = TemplateChat(spare[0], system=system if said is None else said, enable_thinking=thinking if thinks is None else thinks)
        except (ValueError, OSError) as error:
            folder = str(chat.codec.folder)
            raise ValueError(str(error).replace(repr(folder), repr(name)).replace(folder, name)) from None
        made.codec = chat.codec  # share the first tokenizer and its cache
        return made

    return Conversations(form)
