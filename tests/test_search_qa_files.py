"""Questions and documents from files of published data sets, in each format, and what is said of malformed ones."""

import json
import logging
import math

import pytest

from stepreward.envs.search_qa import files, make

CONTEXT = [["Ada Holm", ["Ada Holm lives in Ossby.", " She paints."]], ["Ossby", ["Ossby lies on the Tann."]], ["Tann", ["A river."]]]
HOTPOT = {"_id": "1", "question": "On which river does Ada Holm live?", "answer": "the Tann", "type": "bridge", "level": "hard",
          "supporting_facts": [["Ada Holm", 0], ["Ossby", 0], ["Ada Holm", 1]], "context": CONTEXT}  # fmt: skip
HUGGING_FACE = HOTPOT | {
    "question": "Where does Ada Holm live?",
    "answer": "Ossby",
    "supporting_facts": {"title": ["Ada Holm"], "sent_id": [0]},
    "context": {"title": [title for title, _ in CONTEXT], "sentences": [sentences for _, sentences in CONTEXT]},
}
TWO_WIKI = HOTPOT | {"question": "Which river is near Ada Holm?", "evidences": [["Ada Holm", "home", "Ossby"], ["Ossby", "river", "Tann"]]}
PARAGRAPHS = [
    {"idx": 0, "title": "Ossby", "paragraph_text": "Ossby is a ship.", "is_supporting": False},
    {"idx": 1, "title": "Ossby", "paragraph_text": "Ossby lies on the Tann.", "is_supporting": True},
    {"idx": 2, "title": "Ada Holm", "paragraph_text": "Ada Holm lives in Ossby.", "is_supporting": True},
]
MUSIQUE = {"id": "2hop__1", "question": "What flows by Ada Holm?", "answer": "Tann", "answer_aliases": ["River Tann"], "answerable": True,
           "paragraphs": PARAGRAPHS, "question_decomposition": [
               {"id": 1, "question": "Ada Holm >> home", "answer": "Ossby", "paragraph_support_idx": 2},
               {"id": 2, "question": "#1 >> river", "answer": "Tann", "paragraph_support_idx": 1}]}  # fmt: skip
FLASHRAG = {"id": "test_0", "question": "who lives in ossby", "golden_answers": ["Ada Holm", "Holm"]}
SEARCH_R1 = {"question": "what is by ossby", "reward_model": {"style": "rule", "ground_truth": {"target": ["Tann"]}}}
CORPUS = [{"id": "0", "contents": '"Ada Holm"\nAda Holm lives in Ossby.'}, {"id": "1", "title": "Ossby", "text": "Ossby lies on the Tann."}]


def write(folder, records, name="questions.jsonl"):
    """Writes a JSON list if the name ends in .json, else one JSON object a line; returns the path."""
    path = folder / name
    text = json.dumps(records) if name.endswith(".json") else "".join(json.dumps(record) + "\n\n" for record in records)
    path.write_text(text, encoding="utf-8")
    return str(path)


def asked(found):
    """Each question's (text, answers, titles of the gold path), of all splits."""
    library = found._library
    return {q.text: (q.answers, q.queries, [len(hop) for hop in q.hops]) for split in library.questions.values() for q in split}


@pytest.mark.parametrize("name", ["q.json", "q.jsonl"])
def test_hotpot_and_2wiki_in_both_forms(tmp_path, name):
    found = make("search_r1", data=write(tmp_path, [HOTPOT, HUGGING_FACE, TWO_WIKI], name), held_out=1)()
    assert asked(found) == {
        HOTPOT["question"]: (("the Tann",), ("Ada Holm", "Ossby"), [1, 1]),
        HUGGING_FACE["question"]: (("Ossby",), ("Ada Holm",), [1]),
        TWO_WIKI["question"]: (("the Tann",), ("Ada Holm", "Ossby"), [1, 1]),
    }
    assert [(d.title, d.text) for d in found._library.documents] == [
        ("Ada Holm", "Ada Holm lives in Ossby. She paints."), ("Ossby", "Ossby lies on the Tann."), ("Tann", "A river.")
    ]  # fmt: skip


def test_musique(tmp_path, caplog):
    unanswerable = MUSIQUE | {"question": "What flows by nobody?", "answerable": False}
    path = write(tmp_path, [MUSIQUE, unanswerable, MUSIQUE | {"question": "What else?", "question_decomposition": []}])
    with caplog.at_level(logging.WARNING):
        found = make("search_r1", data=path, held_out=1)()
    assert "1 questions are marked as not answerable" in caplog.text
    assert asked(found)["What flows by Ada Holm?"] == (("Tann", "River Tann"), ("Ada Holm", "Ossby"), [1, 1])
    assert asked(found)["What else?"][1] == ("Ossby", "Ada Holm") and len(found._library.documents) == 3


def test_the_expert_plays_real_questions(tmp_path):
    found = make("igpo", data=write(tmp_path, [HOTPOT, MUSIQUE, HUGGING_FACE]), held_out=1, turn_reward=True)()
    for split in ("train", "held_out"):
        for seed in range(found.num_tasks(split)):
            found.reset(seed=seed, options={"split": split})
            assert found.distance() == len(found.expert())
            rewards = [found.step(action)[-1] for action in found.expert()]
            assert rewards[-1]["won"] and sum(info["turn_reward"] for info in rewards) == pytest.approx(1.0)


def test_flashrag_and_search_r1_need_a_corpus(tmp_path):
    path, corpus = write(tmp_path, [FLASHRAG, FLASHRAG | {"question": "b"}]), write(tmp_path, CORPUS, "corpus.jsonl")
    with pytest.raises(ValueError, match="set environment.options.corpus"):
        make("search_r1", data=path, held_out=1)()
    found = make("search_r1", data=path, corpus=corpus, held_out=1)()
    assert asked(found)["who lives in ossby"] == (("Ada Holm", "Holm"), (), [])
    found.reset(seed=0)
    assert math.isnan(found.distance()) and len(found.expert()) == 2
    with pytest.raises(ValueError, match="turn_reward=True"):
        make("search_r1", data=path, corpus=corpus, held_out=1, turn_reward=True)()
    other = write(tmp_path, [SEARCH_R1, SEARCH_R1 | {"question": "c"}], "r1.jsonl")
    assert asked(make("search_r1", data=other, corpus=corpus, held_out=1)())["what is by ossby"][0] == ("Tann",)


def test_a_corpus_of_its_own_finds_gold_documents_by_title(tmp_path, caplog):
    path, corpus = write(tmp_path, [HOTPOT, MUSIQUE]), write(tmp_path, [*CORPUS, CORPUS[0]], "corpus.jsonl")
    found = make("search_r1", data=path, corpus=corpus, held_out=1)()
    assert len(found._library.documents) == 2 and asked(found)[HOTPOT["question"]][1:] == (("Ada Holm", "Ossby"), [1, 1])
    with caplog.at_level(logging.WARNING):
        found = make("search_r1", data=path, corpus=write(tmp_path, CORPUS[:1], "small.jsonl"), held_out=1)()
    assert "lacks 2 supporting documents" in caplog.text and asked(found)[HOTPOT["question"]][1:] == (("Ada Holm",), [1])


def test_answers_in_one_text_are_split_as_in_igpos_data(tmp_path):
    path = write(tmp_path, [FLASHRAG | {"golden_answers": "Ada Holm<|answer_split|>Holm"}])
    assert files.read_questions(path)[0][0].answers == ("Ada Holm", "Holm")


def test_held_out_questions_of_their_own_file(tmp_path, caplog):
    train, dev = write(tmp_path, [HOTPOT], "train.json"), write(tmp_path, [HOTPOT, MUSIQUE, MUSIQUE], "dev.jsonl")
    with caplog.at_level(logging.WARNING):
        found = make("search_r1", data=train, held_out_data=dev)()
    assert (found.num_tasks("train"), found.num_tasks("held_out")) == (1, 1)
    assert "repeat the text" in caplog.text and "also training questions" in caplog.text
    with pytest.raises(ValueError, match="no question that data does not have"):
        make("search_r1", data=train, held_out_data=train)()


BAD = {
    "empty": ("", "is empty"),
    "broken": (json.dumps(FLASHRAG) + "\n{'question'", r"line 2: this is not valid JSON"),
    "brokenlist": ('[{"question": 1}', "this is not valid JSON"),
    "none": ("[]", "is empty"),
    "number": ("7", "line 1 is not a JSON object"),
    "unknown": ('{"prompt": "x", "target": "y"}', "unknown format, with the keys prompt, target"),
    "keyless": ("{}", "unknown format, with no keys"),
    "question": (json.dumps(FLASHRAG | {"question": 3}), r"line 1: question must be a text that is not empty; it is 3"),
    "blank": (json.dumps(FLASHRAG | {"question": " "}), "question must be a text"),
    "answers": (json.dumps(FLASHRAG | {"golden_answers": [1]}), "golden_answers must be a text or a list of texts; it is"),
    "noanswer": (json.dumps(FLASHRAG | {"golden_answers": []}), "golden_answers has no answer"),
    "context": (json.dumps([HOTPOT, HOTPOT | {"context": "x"}]), r"record 2: context must be a list; it is \"x\""),
    "pair": (json.dumps([HOTPOT | {"context": [["a"]]}]), "record 1: context must be a list of"),
    "sentences": (json.dumps([HOTPOT | {"context": [["a", "b"]]}]), "sentences of 'a'"),
    "support": (json.dumps([HOTPOT | {"supporting_facts": [["Nobody", 0]]}]), "names 'Nobody', which is not in context"),
    "lengths": (json.dumps([HOTPOT | {"context": {"title": ["a"], "sentences": []}}]), "context has 1 of title and 0 of sentences"),
    "unanswered": (json.dumps([{k: v for k, v in HOTPOT.items() if k != "answer"}]), "answer must be a text or a list of texts; it is missing"),
    "paragraph": (json.dumps(MUSIQUE | {"paragraphs": [{"title": "a"}]}), "paragraph 1: paragraph_text must be a text .* it is missing"),
    "decomposition": (json.dumps(MUSIQUE | {"paragraphs": PARAGRAPHS[:1]}), "names paragraph 2, which is not in paragraphs"),
    "aliases": (json.dumps(MUSIQUE | {"answer_aliases": "x"}), "answer_aliases must be a list"),
    "allbad": (json.dumps(MUSIQUE | {"answerable": False}), "has no question that can be answered"),
    "target": (json.dumps(SEARCH_R1 | {"reward_model": {}}), "no ground_truth.target"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_file_is_one_clear_line(tmp_path, name):
    text, message = BAD[name]
    path = tmp_path / f"{name}.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        files.read_questions(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_of_other_kinds(tmp_path):
    (tmp_path / "q.parquet").write_bytes(b"PAR1\x15\x04")
    with pytest.raises(ValueError, match="is a Parquet file"):
        files.read_questions(str(tmp_path / "q.parquet"))
    (tmp_path / "q.json").write_bytes(b'{"question": "\xff"}')
    with pytest.raises(ValueError, match="not UTF-8"):
        files.read_questions(str(tmp_path / "q.json"))
    with pytest.raises(FileNotFoundError, match="no file"):
        make("search_r1", data=str(tmp_path))()
    corpus = write(tmp_path, [{"id": "0", "passage": "x"}], "corpus.jsonl")
    with pytest.raises(ValueError, match="line 1 is no document of a corpus"):
        make("search_r1", data=write(tmp_path, [FLASHRAG]), corpus=corpus)()


def test_too_few_questions_to_hold_out(tmp_path):
    with pytest.raises(ValueError, match="has 1 questions, too few to hold out 500"):
        make("search_r1", data=write(tmp_path, [HOTPOT]))()
