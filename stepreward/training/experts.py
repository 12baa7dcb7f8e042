"""An expert behind an address: a language model that answers in the policy's place, in any state of an episode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stepreward import processes
from stepreward.envs import entries
from stepreward.envs.endpoint import Endpoint, EndpointError
from stepreward.errors import UserError
from stepreward.rollout.player import Messages
from stepreward.training.asking import Unreachable, ask_all

KINDS = ("environment", "endpoint")
FOLDER = "expert"  # in the workdir: what the model answered
DECIDES = ("expert.kind", "expert.model", "expert.temperature", "expert.instruction")


class EndpointExpert:
    """Asks a language model behind an OpenAI-compatible address for the next answer of an episode.

    Answers are kept in a folder, under a digest of the conversation, the model, the temperature and the number of the draw, so that a run
    that is resumed repeats them. The writer asks for all processes.

    Args:
      endpoint: the model.
      folder: where answers are kept; None keeps them in memory only.
      parallel: requests that may wait for an answer at the same time.
      instruction: the system message of each request; "": none.
    """

    def __init__(self, endpoint: Endpoint, folder: Path | None, *, parallel: int = 8, instruction: str = ""):
        self._endpoint, self._folder, self._parallel, self._instruction = endpoint, folder, parallel, instruction
        self._kept: dict[str, str] = {}

    def open(self) -> None:
        """Raises UserError unless a server responds."""
        try:
            processes.on_writer(self._reach)
        except Unreachable as error:
            raise UserError(self._advice(error)) from None

    def __call__(self, conversations: Sequence[Messages], draws: Sequence[int]) -> list[str | None]:
        """Returns an answer to each conversation; None where the model gave none.

        Args:
          conversations: messages {"role", "content"}, the last one from the user.
          draws: a number for each; the same conversation with the same number has the same answer.

        Raises:
          UserError: no request got an answer. What was answered before is kept.
        """
        everything = processes.gather_objects((list(conversations), list(draws)))
        try:
            found = processes.on_writer(lambda: [self._answers(*part) for part in everything])
        except Unreachable as error:
            raise UserError(self._advice(error)) from None
        return found[processes.index()]

    def _reach(self) -> None:
        try:
            self._endpoint.reach()
        except EndpointError as error:
            raise Unreachable(str(error)) from None

    def _answers(self, conversations: Sequence[Messages], draws: Sequence[int]) -> list[str | None]:
        system = [{"role": "system", "content": self._instruction}] if self._instruction else []
        messages = [[*system, *conversation] for conversation in conversations]
        keys = [entries.key_of(self._endpoint.model, self._endpoint.temperature, said, draw) for said, draw in zip(messages, draws)]
        wanted = {key: said for key, said in zip(keys, messages) if self._known(key) is None}
        if wanted:
            ask_all(self._endpoint.complete, wanted, self._keep, parallel=self._parallel, whom="the expert")
        return [self._known(key) for key in keys]

    def _known(self, key: str) -> str | None:
        if key not in self._kept and self._folder is not None:
            entry = entries.read(self._folder / f"{key}.json")
            if isinstance(entry, dict) and entry.get("key") == key and isinstance(entry.get("said"), str):
                self._kept[key] = entry["said"]
        return self._kept.get(key)

    def _keep(self, key: str, said: str) -> None:
        self._kept[key] = said
        if self._folder is not None:
            entries.write(self._folder / f"{key}.json", {"key": key, "said": said})

    def _advice(self, error: Exception) -> str:
        return (
            f"{error}. Start the server of expert.url={self._endpoint.url!r} again, or set expert.url to the address of a running one, and "
            "repeat the command: the run resumes, and answers that it has are not asked for again. expert.kind=environment needs no server."
        )


def asks_endpoint(c) -> bool:
    """Whether the expert of the run's preference method is a language model."""
    return bool(c.preference.method) and "expert" in c and c.expert.kind == "endpoint" and not c.stages.preference  # older runs have none


def make_expert(c, workdir: Path | None) -> EndpointExpert | None:
    """Returns the language model that the config names as expert; None where the environment's expert is meant."""
    e = c.expert
    if not asks_endpoint(c):
        return None
    endpoint = Endpoint("expert", e.url, e.model, e.key_variable, e.temperature, e.timeout_s, e.retries)
    folder = None if workdir is None else Path(workdir) / FOLDER
    return EndpointExpert(endpoint, folder, parallel=e.parallel, instruction=e.instruction)
