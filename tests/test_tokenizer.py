"""The symbol tokenizer and the codec."""

import json

import numpy as np
import pytest

from stepreward.models.tokenizer import END, SPECIAL_TOKENS, load_tokenizer, train_piece_tokenizer, train_symbol_tokenizer

BOARD = "#####\n#@$.#\n#####\n"
TEXTS = ["Push every box.\n", BOARD, "up down left right, update upper", "é \t"]
WORDS = ["up", "down", "left", "right", "Push every box."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    train_symbol_tokenizer(TEXTS, WORDS, path)
    return path


@pytest.fixture(scope="module")
def codec(folder):
    return load_tokenizer(folder)


def test_special_tokens_and_words_come_first(codec):
    assert (codec.pad_id, codec.user_id, codec.assistant_id, codec.end_id, codec.unknown_id) == (0, 1, 2, 3, 4)
    assert [codec.encode(word).tolist() for word in WORDS] == [[5], [6], [7], [8], [9]]
    characters = set("".join(TEXTS) + "".join(WORDS))
    assert codec.vocab_size == len(SPECIAL_TOKENS) + len(WORDS) + len(characters)


def test_a_board_is_one_token_a_cell(codec):
    ids = codec.encode(BOARD)
    assert ids.dtype == np.int32 and ids.shape == (len(BOARD),)
    assert [codec.decode([i]) for i in ids] == list(BOARD)


def test_decode_inverts_encode(codec):
    for text in [*TEXTS, "".join(TEXTS), "", " ", "\n\n", "up\ndown up,left", "upup"]:
        assert codec.decode(codec.encode(text)) == text


def test_a_word_is_not_found_inside_a_longer_one(codec):
    assert codec.encode("up").size == 1
    assert codec.encode("update").size == 6
    assert codec.encode("up,up").tolist() == [5, codec.encode(",")[0], 5]


def test_the_longest_word_wins(tmp_path):
    codec = train_symbol_tokenizer([], ["a", "a b", "[", "[["], tmp_path)
    assert codec.encode("a b").tolist() == [6] and codec.encode("[[[").tolist() == [8, 7]


def test_environment_text_cannot_speak_as_a_special_token(codec, tmp_path):
    spaced = train_symbol_tokenizer([END], ["up"], tmp_path)
    assert spaced.end_id not in spaced.encode(f"up{END}") and spaced.decode(spaced.encode(END)) == END
    assert not set(codec.encode("".join(SPECIAL_TOKENS)).tolist()) & {0, 1, 2, 3}


def test_decode_never_raises(codec):
    assert codec.decode([]) == ""
    assert codec.decode([1, 5, 3, 0]) == "up"
    assert codec.decode(np.array([-1, 5, codec.vocab_size, 2**31 - 1, 4], dtype=np.int64)) == "\ufffdup" + "\ufffd" * 3
    assert codec.decode(range(-3, codec.vocab_size + 3)).startswith("\ufffd" * 3)
    assert codec.encode("☃").tolist() == [codec.unknown_id]


def test_encoded_text_cannot_be_changed_in_the_cache(codec):
    ids = codec.encode("up")
    with pytest.raises(ValueError):
        ids[0] = 0
    assert codec.encode("up") is ids


def test_the_same_texts_give_the_same_files(folder, tmp_path):
    train_symbol_tokenizer(reversed(TEXTS), [*WORDS, "up"], tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in folder.iterdir()}
    for file in folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_auto_tokenizer_loads_the_folder_and_agrees(codec, folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(folder)
    text = "".join(TEXTS)
    assert other.encode(text) == codec.encode(text).tolist()
    assert other.decode(other.encode(text)) == text
    assert (len(other), other.pad_token_id, other.eos_token_id, other.unk_token_id) == (codec.vocab_size, 0, 3, 4)
    messages = [
        {"role": "user", "content": BOARD},
        {"role": "assistant", "content": "up"},
        {"role": "user", "content": "left"},
    ]
    expected = [1, *codec.encode(BOARD).tolist(), 2, 5, 3, 1, 7, 2]
    found = other.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert other.encode(found) == expected


def test_words_must_be_words(tmp_path):
    for word in ("", END):
        with pytest.raises(ValueError, match="must not be empty or a special token"):
            train_symbol_tokenizer(TEXTS, ["up", word], tmp_path)


def test_load_names_what_is_wrong(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer folder .*nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no tokenizer.json"):
        load_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        load_tokenizer(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    del content["model"]["vocab"][END]
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != END]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"lacks the special tokens <\|end\|>"):
        load_tokenizer(tmp_path)


TALK = ["Find me a red lamp, price lower than 40.00 dollars", "click[red lamp] search[red lamp] go to drawer 3"] * 3


def test_pieces_write_any_text_and_read_it_back(tmp_path):
    codec = train_piece_tokenizer(TALK, 300, tmp_path / "a")
    assert codec.vocab_size <= 300
    for text in [*TALK, "naïve ☃ <|end|>\n\n two  spaces", ""]:
        assert codec.decode(codec.encode(text)) == text
        assert codec.encode(text).max(initial=5) >= 5 and codec.encode(text).min(initial=5) >= 5  # never a special token
    again = train_piece_tokenizer(TALK, 300, tmp_path / "b")
    assert (tmp_path / "a" / "tokenizer.json").read_text() == (tmp_path / "b" / "tokenizer.json").read_text()
    assert len(again.encode("click[red lamp]")) < len("click[red lamp]") / 2


def test_what_stands_between_marks_is_written_alike(tmp_path):
    codec = train_piece_tokenizer(TALK, 320, tmp_path / "a")
    one, two = (codec.encode(text).tolist() for text in ("[red lamp]", "click[red lamp]"))
    assert two[-len(one) :] == one


def test_too_few_pieces_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 261"):
        train_piece_tokenizer(TALK, 100, tmp_path / "a")
