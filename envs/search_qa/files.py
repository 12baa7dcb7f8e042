"""Reads questions and documents from files of published data sets. The format is recognised from the content.

| format | a record has |
|---|---|
| HotpotQA, 2WikiMultihopQA (JSON list or JSONL) | question, answer, context, supporting_facts; lists of pairs, or dictionaries of lists as on Hugging Face |
| MuSiQue (JSONL or JSON list) | question, answer, answer_aliases, answerable, paragraphs, question_decomposition |
| FlashRAG (JSONL or JSON list) | question, golden_answers; needs a corpus |
| Search-R1, converted to JSONL | question, reward_model.ground_truth.target; needs a corpus |
| a corpus (JSONL) | contents: the title in quotes, a line break, the text; or title and text |

Every error is a ValueError of one line that names the file and the line or record.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

SEPARATOR = "<|answer_split|>"  # between right answers in one text, as in IGPO's data


class Raw(NamedTuple):
    """A question as read. context: (title, text) of its documents; gold: the gold path's documents, as (title, text or None)."""

    text: str
    answers: tuple[str, ...]
    context: tuple[tuple[str, str], ...]
    gold: tuple[tuple[str, str | None], ...]


def read_questions(path: str) -> tuple[list[Raw], int]:
    """Reads a file of questions; returns them, and the number of those left out because they have no answer (MuSiQue's unanswerable)."""
    found, left_out, read = [], 0, None
    for where, record in _records(path):
        if read is None:
            read = _reader(where, record)
        raw = read(where, record)
        if raw is None:
            left_out += 1
        else:
            found.append(raw)
    if not found:
        raise ValueError(f"{path} has no question that can be answered")
    return found, left_out


def read_corpus(path: str) -> list[tuple[str, str]]:
    """Reads a corpus; returns (title, text) of each document."""
    documents = []
    for where, record in _records(path):
        if "contents" in record:
            title, _, text = _text(where, record, "contents").partition("\n")
            documents.append((title.strip().strip('"').strip(), text.strip()))
        elif "text" in record:
            documents.append((_text(where, record, "title"), _text(where, record, "text")))
        else:
            raise ValueError(f"{where} is no document of a corpus: it has {_keys(record)}, but neither contents nor title and text")
    return documents


# --- Files ---


def _records(path: str) -> Iterator[tuple[str, Mapping]]:
    """Yields (place for error messages, record) of a JSON list or of a JSONL file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path!r}: give the path of a file of questions or documents")
    with open(path, "rb") as file:
        head = file.read(4)
    if head == b"PAR1":
        raise ValueError(f"{path} is a Parquet file, which is not read here: convert it to JSONL, e.g. pandas.read_parquet(…).to_json(…)")
    try:
        with open(path, encoding="utf-8-sig") as file:
            start = file.read(4096).lstrip()
            file.seek(0)
            found = _of_list(path, file) if start.startswith("[") else _of_lines(path, file)
            empty = True
            for where, record in found:
                empty = False
                if not isinstance(record, Mapping):
                    raise ValueError(f"{where} is not a JSON object")
                yield where, record
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    if empty:
        raise ValueError(f"{path} is empty")


def _of_list(path: str, file) -> Iterator[tuple[str, Any]]:
    try:
        records = json.load(file)
    except ValueError as error:
        raise ValueError(f"{path}: this is not valid JSON ({error})") from None
    for number, record in enumerate(records, 1):
        yield f"{path}, record {number}", record


def _of_lines(path: str, file) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: this is not valid JSON ({error}); give a JSON list, or one JSON object a line"
            ) from None
        yield f"{path}, line {number}", record


# --- Formats ---


def _reader(where: str, record: Mapping):
    """Chooses the reader of a file from its first record."""
    for keys, read in (
        ({"question", "paragraphs"}, _musique),
        ({"question", "context", "supporting_facts"}, _hotpot),
        ({"question", "golden_answers"}, _flashrag),
        ({"question", "reward_model"}, _search_r1),
    ):
        if keys <= set(record):
            return read
    raise ValueError(
        f"{where}: unknown format, with {_keys(record)}; give questions of HotpotQA or 2WikiMultihopQA (question, answer, context, "
        "supporting_facts), MuSiQue (question, answer, paragraphs) or FlashRAG (question, golden_answers)"
    )


def _hotpot(where: str, record: Mapping) -> Raw:
    context = []
    for title, sentences in _pairs(where, record, "context", "title", "sentences"):
        if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
            raise ValueError(f"{where}: the sentences of {title!r} in context must be a list of texts")
        context.append((title, "".join(sentences).strip() if _spaced(sentences) else " ".join(sentences).strip()))
    titles = dict.fromkeys(title for title, _ in _pairs(where, record, "supporting_facts", "title", "sent_id"))
    texts = dict(reversed(context))  # of equal titles, the first
    if missing := [title for title in titles if title not in texts]:
        raise ValueError(f"{where}: supporting_facts names {missing[0]!r}, which is not in context")
    gold = tuple((title, texts[title]) for title in titles)
    return Raw(_text(where, record, "question"), _answers(where, record, "answer"), tuple(context), gold)


def _musique(where: str, record: Mapping) -> Raw | None:
    if record.get("answerable", True) is False:
        return None
    paragraphs = _list(where, record, "paragraphs")
    context, by_number, supporting = [], {}, []
    for number, paragraph in enumerate(paragraphs):
        inner = f"{where}, paragraph {number + 1}"
        if not isinstance(paragraph, Mapping):
            raise ValueError(f"{inner} is not a JSON object")
        context.append((_text(inner, paragraph, "title"), _text(inner, paragraph, "paragraph_text")))
        by_number[paragraph.get("idx", number)] = context[-1]
        supporting += [context[-1]] if paragraph.get("is_supporting") else []
    steps = record.get("question_decomposition") or []
    if not isinstance(steps, list) or not all(isinstance(step, Mapping) for step in steps):
        raise ValueError(f"{where}: question_decomposition must be a list of JSON objects")
    numbers = [step.get("paragraph_support_idx") for step in steps]
    if unknown := [number for number in numbers if number is not None and number not in by_number]:
        raise ValueError(f"{where}: question_decomposition names paragraph {unknown[0]}, which is not in paragraphs")
    ordered = [by_number[number] for number in numbers if number is not None]
    aliases = record.get("answer_aliases") or []
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise ValueError(f"{where}: answer_aliases must be a list of texts")
    answers = tuple(dict.fromkeys([*_answers(where, record, "answer"), *(alias for alias in aliases if alias.strip())]))
    return Raw(_text(where, record, "question"), answers, tuple(context), tuple(dict.fromkeys(ordered or supporting)))


def _flashrag(where: str, record: Mapping) -> Raw:
    return Raw(_text(where, record, "question"), _answers(where, record, "golden_answers"), (), ())


def _search_r1(where: str, record: Mapping) -> Raw:
    truth = record["reward_model"].get("ground_truth") if isinstance(record["reward_model"], Mapping) else None
    if not isinstance(truth, Mapping) or "target" not in truth:
        raise ValueError(f"{where}: reward_model has no ground_truth.target")
    return Raw(_text(where, record, "question"), _answers(where, truth, "target"), (), ())


# --- Fields ---


def _text(where: str, record: Mapping, key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {key} must be a text that is not empty; it {_is(record, key)}")
    return value.strip()


def _list(where: str, record: Mapping, key: str) -> list:
    value = record.get(key)
    if not isinstance(value, list):
        raise ValueError(f"{where}: {key} must be a list; it {_is(record, key)}")
    return value


def _answers(where: str, record: Mapping, key: str) -> tuple[str, ...]:
    value = record.get(key)
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: {key} must be a text or a list of texts; it {_is(record, key)}")
    answers = tuple(dict.fromkeys(part.strip() for text in texts for part in text.split(SEPARATOR) if part.strip()))
    if not answers:
        raise ValueError(f"{where}: {key} has no answer")
    return answers


def _pairs(where: str, record: Mapping, key: str, first: str, second: str) -> list[tuple[str, Any]]:
    """Reads a list of pairs, or the dictionary of two lists that Hugging Face makes of it."""
    value = record.get(key)
    if isinstance(value, Mapping):
        one, two = _list(f"{where}, {key}", value, first), _list(f"{where}, {key}", value, second)
        if len(one) != len(two):
            raise ValueError(f"{where}: {key} has {len(one)} of {first} and {len(two)} of {second}")
        pairs = list(zip(one, two))
    else:
        pairs = _list(where, record, key)
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise ValueError(f"{where}: {key} must be a list of [{first}, {second}]")
    return [(pair[0].strip(), pair[1]) for pair in pairs]


def _spaced(sentences: list[str]) -> bool:
    """Whether sentences bring the spaces between them, as in HotpotQA (2WikiMultihopQA has none)."""
    return any(sentence[:1].isspace() or sentence[-1:].isspace() for sentence in sentences)


def _keys(record: Mapping) -> str:
    return f"the keys {', '.join(map(str, list(record)[:8]))}" if record else "no keys"


def _is(record: Mapping, key: str) -> str:
    return f"is {json.dumps(record[key], ensure_ascii=False)[:60]}" if key in record else "is missing"
