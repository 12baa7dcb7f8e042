"""Chat templates applied turn by turn give the same tokens as on the whole conversation, whatever its content."""

import json
import random

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from stepreward.envs import sokoban
from stepreward.models import decoder, presets
from stepreward.models.pretrained_tokenizer import load_pretrained_tokenizer
from stepreward.models.tokenizer import train_symbol_tokenizer
from stepreward.rollout.chat import Chat
from stepreward.rollout.engine import Engine
from stepreward.rollout.environments import EnvironmentPool
from stepreward.rollout.episode import Task
from stepreward.rollout.packing import pack
from stepreward.rollout.play import Collector
from stepreward.rollout.sampling import Sampling
from stepreward.rollout.template_chat import REWRITES, TemplateChat, load_chat

# --- Small tokenizer folders in the published forms: a byte-level vocabulary of a few merges, full special tokens ---

LLAMA = """{{ bos_token }}
{%- if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}
{%- set told = '' %}{% set turns = messages %}
{%- if messages[0].role == 'system' %}{% set told = messages[0].content | trim %}{% set turns = messages[1:] %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: ' + date_string }}
{{- '\n\n' + told + '<|eot_id|>' }}
{%- for turn in turns %}
{{- '<|start_header_id|>' + turn.role + '<|end_header_id|>\n\n' + turn.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

QWEN2 = """{%- if messages[0].role != 'system' %}
{{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
{%- for turn in messages %}{{ '<|im_start|>' + turn.role + '\n' + turn.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

QWEN3 = """{%- set found = namespace(asked=-1) %}
{%- for turn in messages %}{% if turn.role == 'user' %}{% set found.asked = loop.index0 %}{% endif %}{% endfor %}
{%- for turn in messages %}
{%- set said = turn.content %}{% set thought = '' %}
{%- if turn.role == 'assistant' and '</think>' in said %}
{%- set thought = said.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set said = said.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{{- '<|im_start|>' + turn.role + '\n' }}
{%- if turn.role == 'assistant' and loop.index0 > found.asked and (loop.last or thought) %}
{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + said.lstrip('\n') }}
{%- else %}{{ said }}{% endif %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}"""

_CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# special tokens, tokens added as plain words, template, its end token
FAMILIES = {
    "llama": (["<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
              [], LLAMA, "<|eot_id|>"),
    "qwen2": (_CHATML, ["<tool_call>"], QWEN2, "<|im_end|>"),
    "qwen2_vl": ([*_CHATML, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"], ["<tool_call>"], QWEN2, "<|im_end|>"),
    "qwen3": (_CHATML, ["<think>", "</think>"], QWEN3, "<|im_end|>"),
}  # fmt: skip
SPLIT = r"(?i:'s|'t|'ll)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CORPUS = [
    "assistant\n\n\nuser\n\nthe box\n\n  up\n",
    "user\nsystem\n#### push the box \n\n",
    "user\n\n\n# _ O X the\r\n\n",
    "é√ up",
] * 4


def make_folder(path, special, plain, template, end, *, beside=False, ends=None, bos=None):
    """Writes a Hugging Face tokenizer folder; `ends`: what `generation_config.json` names."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, min_frequency=2, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([tokenizers.AddedToken(t, special=False, normalized=False) for t in plain])
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "bos_token": bos}
    if beside:
        (path / "chat_template.jinja").write_text(template)
    elif template is not None:
        config["chat_template"] = template
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    if ends is not None:
        ids = [tokenizer.token_to_id(token) for token in ends]
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids if len(ids) > 1 else ids[0]}))
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    for name, family in FAMILIES.items():
        bos = "<|begin_of_text|>" if name == "llama" else None
        make_folder(root / name, *family, bos=bos, beside=name == "qwen3")
    return root


@pytest.fixture(scope="module")
def reference(folders):
    """`reference(name, texts, **template)`: the ids of the whole conversation, by the tokenizer's own method."""
    from transformers import PreTrainedTokenizerFast

    found = {name: PreTrainedTokenizerFast.from_pretrained(folders / name) for name in FAMILIES}
    special, _, template, end = FAMILIES["qwen2"]  # without <tool_call>, which is text in what is said
    found["qwen2"] = PreTrainedTokenizerFast.from_pretrained(make_folder(folders / "plain", special, [], template, end))

    def whole(name, texts, *, system=None, **template):
        messages = [{"role": "system", "content": system}] if system is not None else []
        messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        template = {"date_string": "26 Jul 2024", "add_generation_prompt": len(texts) % 2 == 1} | template
        text = found[name].apply_chat_template(messages, tokenize=False, **template)
        return found[name].encode(text, add_special_tokens=False)

    return whole


def played(chat, texts, answer=None):
    """The ids of a conversation as a rollout makes them, of users' messages and answers in turn."""
    answer = answer or chat.answer
    turns = [answer(t) if i % 2 else chat.user_turn(t, first=i == 0) for i, t in enumerate(texts)]
    return np.concatenate(turns).tolist()


WORDS = ["the box", "up", " ", "  ", "\n", "\n\n", "\t", "\r\n", "é", "e\N{COMBINING ACUTE ACCENT}", "√", "🙂", "中文", "\u00a0",
         "\u2028", "12345", "it's", "#_XO", "{{ x }}", "{% if %}", "\x00", "<|im_end", "im_end|>", "<", "<image>", "<tool_call>"]  # fmt: skip


def random_texts(rng, count):
    """Messages and answers; an answer begins with a word, since a model samples it after the request's own blanks."""
    texts = ["".join(rng.choice(WORDS) for _ in range(rng.randrange(12))) for _ in range(count)]
    return ["up" + text if i % 2 else text for i, text in enumerate(texts)]


@pytest.mark.parametrize("system", [None, "You push boxes.\n", ""])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_turns_and_answers_are_the_whole_conversation(folders, reference, name, system):
    chat, rng = load_chat(folders / name, system), random.Random(name)
    for _ in range(60):
        texts = random_texts(rng, rng.choice([1, 3, 5, 7]))
        assert played(chat, texts) == reference(name, texts, system=system), texts
    plain = [text.replace("<", "") for text in random_texts(rng, 4)]
    if name != "qwen3":  # it puts an empty thought before the last answer
        after_end = [] if name == "llama" else chat.codec.encode("\n").tolist()
        assert played(chat, plain) + after_end == reference(name, plain, system=system)


@pytest.mark.parametrize(("name", "mark"), [("llama", "<|eot_id|>"), ("qwen2", "<|im_end|>"), ("qwen3", "<|im_start|>")])
def test_special_tokens_in_a_message_are_only_text(folders, name, mark):
    chat = load_chat(folders / name)
    special = set(chat.codec.special.values())
    count = lambda text, **turn: sum(int(i) in special for i in chat.user_turn(text, **turn))
    for text in (f"a{mark}b", mark, f"\n{mark}user\nlook{mark}"):
        for turn in ({"first": True}, {"first": False}, {"first": False, "closes_answer": True}):
            assert count(text, **turn) == count("ab", **turn)
        assert chat.codec.decode(chat.codec.encode(text)) == text
        assert sum(int(i) in special for i in chat.answer(text)) == 1
    assert mark in chat.text(chat.user_turn(f"a{mark}b", first=True))


@pytest.mark.parametrize(("name", "mark"), [("llama", "<|eot_id|>"), ("qwen2", "<|im_end|>"), ("qwen3", "<|im_start|>")])
def test_a_text_is_added_to_the_end_of_a_message(folders, name, mark):
    chat = load_chat(folders / name)
    for turn in ({"first": True}, {"first": False, "closes_answer": True}):
        plain, note = chat.user_turn("look", **turn), f"\nup{mark}"
        found = chat.noted(plain, note)
        assert len(found) - len(plain) == len(chat.codec.encode(note))
        assert chat.text(found) == chat.text(chat.user_turn("look" + note, **turn))
        special = set(chat.codec.special.values())
        assert sum(int(i) in special for i in found) == sum(int(i) in special for i in plain)


def test_literal_turns_of_qwen(folders):
    chat = load_chat(folders / "qwen2", system="Hi.")
    codec, special = chat.codec, chat.codec.special
    start, end = special["<|im_start|>"], special["<|im_end|>"]
    spell = lambda text: codec.encode(text).tolist()
    asked = [end, *spell("\n"), start, *spell("assistant\n")]
    first = [start, *spell("system\nHi."), end, *spell("\n"), start, *spell("user\n\nup"), *asked]
    assert chat.user_turn("\nup", first=True).tolist() == first
    later = [*spell("\n"), start, *spell("user\n\nup"), *asked]
    assert chat.user_turn("\nup", first=False).tolist() == later
    assert chat.user_turn("\nup", first=False, closes_answer=True).tolist() == [end, *later]
    assert chat.answer("up").tolist() == [*spell("up"), end]
    assert chat.text([*spell("u"), start, *spell("p"), end, 10**6, -1]) == "up\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"
    assert len(spell("\n\n")) < 2 * len(spell("\n"))  # a boundary between header and message would show
    with pytest.raises(ValueError, match="has no answer to close"):
        chat.user_turn("up", first=True, closes_answer=True)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_a_cut_answer_is_closed_by_the_next_turn(folders, reference, name):
    chat = load_chat(folders / name)
    cut = chat.codec.encode("up the")
    turns = [chat.user_turn("a", first=True), cut, chat.user_turn("b", first=False, closes_answer=True)]
    assert np.concatenate(turns).tolist() == reference(name, ["a", "up the", "b"])


def test_stop_ids(folders, tmp_path):
    for name, (*_, end) in FAMILIES.items():
        chat = load_chat(folders / name)
        assert chat.stop_ids == (chat.codec.special[end],)
    path = make_folder(tmp_path / "llama", *FAMILIES["llama"], ends=["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"])
    chat = load_chat(path)
    assert chat.stop_ids == tuple(chat.codec.special[t] for t in ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"))
    path = make_folder(tmp_path / "one", *FAMILIES["qwen2"], ends=["<|endoftext|>"])
    chat = load_chat(path)
    assert chat.stop_ids == tuple(chat.codec.special[t] for t in ("<|im_end|>", "<|endoftext|>"))


# --- What templates rewrite ---


def test_what_each_family_rewrites(folders):
    assert load_chat(folders / "qwen2").rewrites_history == ()
    assert load_chat(folders / "llama").rewrites_history == ("blanks",)
    assert load_chat(folders / "qwen3").rewrites_history == ("thoughts", "last_answer")
    assert load_chat(folders / "qwen3", enable_thinking=True).rewrites_history == ("thoughts", "last_answer")
    assert load_chat(folders / "qwen3", enable_thinking=False).rewrites_history == ("thoughts", "request")
    assert set(REWRITES) == {"thoughts", "request", "last_answer", "blanks"}


def test_qwen3_keeps_the_thoughts_that_were_sampled(folders, reference):
    thought = "<think>\nright is free\n</think>\n\nup"
    chat = load_chat(folders / "qwen3")
    sampled = lambda text: [*chat.codec.encode_template(text), chat.stop_ids[0]]  # with the model's own <think>
    kept = played(chat, ["a", thought, "b"], sampled)
    assert kept != reference("qwen3", ["a", thought, "b"])
    assert chat.text(kept).count("right is free") == 1 and kept.count(chat.codec.added["<think>"]) == 1
    assert played(chat, ["a", "up", "b"]) == reference("qwen3", ["a", "up", "b"], enable_thinking=True)
    assert played(chat, ["a", thought], sampled) + chat.codec.encode("\n").tolist() == reference("qwen3", ["a", thought])
    written = played(chat, ["a", thought, "b"])
    assert chat.text(written) == chat.text(kept) and chat.codec.added["<think>"] not in written


def test_qwen3_without_thinking_keeps_the_empty_thoughts_that_it_was_asked_with(folders, reference):
    chat = load_chat(folders / "qwen3", enable_thinking=False)
    assert played(chat, ["a"]) == reference("qwen3", ["a"], enable_thinking=False)
    assert played(chat, ["a", "up"]) + chat.codec.encode("\n").tolist() == reference("qwen3", ["a", "up"])
    conversation = played(chat, ["a", "up", "b"])
    assert conversation.count(chat.codec.added["<think>"]) == 2
    assert reference("qwen3", ["a", "up", "b"], enable_thinking=False).count(chat.codec.added["<think>"]) == 1


def test_llama_trims_messages_and_demonstrations_and_shows_a_fixed_date(folders, reference, tmp_path):
    chat = load_chat(folders / "llama", system=" Be brief. ")
    texts = [" \n a box\t\n", "  up \n", "\n\n"]
    assert played(chat, texts) == reference("llama", texts, system=" Be brief. ")
    assert "Today Date: 26 Jul 2024\n\nBe brief." in chat.text(chat.user_turn("", first=True))
    other = load_chat(folders / "llama", date_string="01 Jan 2030")
    assert "Today Date: 01 Jan 2030\n\n" in other.text(other.user_turn("", first=True))
    asks_for_today = LLAMA.replace("if date_string is not defined", "if true")
    path = make_folder(tmp_path, *FAMILIES["llama"][:2], asks_for_today, "<|eot_id|>", bos="<|begin_of_text|>")
    told = load_chat(path, system=" Be brief. ")
    np.testing.assert_array_equal(told.user_turn("a", first=True), chat.user_turn("a", first=True))


# --- Folders and errors ---


def test_a_symbol_tokenizer_has_the_same_turns_through_its_template(tmp_path):
    train_symbol_tokenizer(["#_OX√PS :first-quesodanwrhy<>/12 push the box,tk{}\n\t"], ["up", "down"], tmp_path)
    chat = load_chat(tmp_path)
    assert isinstance(chat, Chat)
    same = TemplateChat(load_pretrained_tokenizer(tmp_path))
    assert same.rewrites_history == () and same.stop_ids == chat.stop_ids and same.codec.pad_id == chat.codec.pad_id
    for text in ("", "P_X\n", "up<|end|>", "☃"):
        for first, closes in ((True, False), (False, False), (False, True)):
            turn = chat.user_turn(text, first=first, closes_answer=closes)
            np.testing.assert_array_equal(same.user_turn(text, first=first, closes_answer=closes), turn)
        np.testing.assert_array_equal(same.answer(text), chat.answer(text))
    for options in ({"system": "a"}, {"enable_thinking": True}):
        with pytest.raises(ValueError, match="is a symbol tokenizer"):
            load_chat(tmp_path, **options)
    with pytest.raises(ValueError, match="has no tokens for images"):
        chat.user_turn("<image>", first=True, image_tokens=(3,))
    with pytest.raises(ValueError, match="1 <image> markers and 0 images"):
        chat.user_turn("<image>", first=True, image_tokens=())
    np.testing.assert_array_equal(chat.user_turn("up", first=True, image_tokens=()), chat.user_turn("up", first=True))


PREFACE, ASK = "{% for turn in messages %}", "{{ '<|im_start|>' if add_generation_prompt else '' }}"
BROKEN = {
    "cannot be played turn by turn: an answer does not end with a token of its own":
        PREFACE + "{{ turn.role + ': ' + turn.content + '\\n' }}{% endfor %}{{ 'assistant: ' if add_generation_prompt }}",
    "it writes the first message or the last request otherwise":  # the system text moves to the last message
        PREFACE + "{{ '<|im_start|>' + ('Rules. ' if loop.last else '') + turn.content + '<|im_end|>' }}{% endfor %}",
    "rendering failed .TemplateError: no assistant":
        PREFACE + "{{ turn.content if turn.role == 'user' else raise_exception('no assistant') }}{% endfor %}",
    "it does not write every message once .'first-question'":
        "{{ messages[-1].content }}<|im_end|>",
    "it changes the text of a message by more than its outer blanks":
        PREFACE + "{{ '<|im_start|>' + turn.content.replace('\\t', ' ') + '<|im_end|>' }}{% endfor %}" + ASK,
    "it writes later turns otherwise than the second one":
        PREFACE + "{{ '<|im_start|>' + ('!' if loop.index0 == 3 else '') + turn.content + '<|im_end|>' }}{% endfor %}" + ASK,
    "it puts other text before an earlier answer":
        PREFACE + "{{ '<|im_start|>' + turn.role + turn.content + '<|im_end|>' }}{% endfor %}" + ASK,
}  # fmt: skip


@pytest.mark.parametrize("why", BROKEN)
def test_a_template_that_does_not_split_is_one_clear_error(why, tmp_path):
    path = make_folder(tmp_path, *FAMILIES["qwen2"][:2], BROKEN[why], "<|im_end|>")
    with pytest.raises(ValueError, match=why) as caught:
        load_chat(path)
    assert str(path) in str(caught.value) and "Take a model with another template" in str(caught.value)


def test_a_tokenizer_that_marks_the_beginning_of_a_text_is_refused(tmp_path):
    path = make_folder(tmp_path, *FAMILIES["qwen2"])
    made = json.loads((path / "tokenizer.json").read_text())
    for token in made["added_tokens"]:
        token["rstrip"] = token["content"] == "<|im_end|>"
    (path / "tokenizer.json").write_text(json.dumps(made))
    with pytest.raises(ValueError, match="cuts a conversation otherwise than its turns one by one"):
        load_chat(path)


def test_wrong_folders_and_options_are_told(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer folder"):
        load_chat(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no tokenizer.json"):
        load_chat(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="the tokenizer in .* cannot be read"):
        load_chat(tmp_path)
    bare = make_folder(tmp_path / "bare", *FAMILIES["qwen2"][:2], None, "<|im_end|>")
    with pytest.raises(ValueError, match="holds no chat template"):
        load_chat(bare)
    with pytest.raises(ValueError, match="has no thinking mode"):
        load_chat(folders / "qwen2", enable_thinking=False)
    with pytest.raises(ValueError, match="or the message holds special tokens"):
        load_chat(folders / "qwen2", system="a<|im_end|>")
    deaf = QWEN2.replace("in messages %}", "in messages if turn.role != 'system' %}")
    with pytest.raises(ValueError, match="does not show the system message"):
        load_chat(make_folder(tmp_path / "deaf", *FAMILIES["qwen2"][:2], deaf, "<|im_end|>"), system="Hi.")


def test_marks_of_turns_that_were_added_as_plain_words_are_special_too(tmp_path):
    template = (
        "{{ bos_token }}" + PREFACE + "{% if turn.role == 'user' %}<｜User｜>{{ turn.content }}{% else %}<｜Assistant｜>"
        "{{ turn.content.split('</think>')[-1] }}<|endoftext|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
    )
    plain = ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"]
    path = make_folder(tmp_path, _CHATML, plain, template, "<|endoftext|>", bos="<|im_start|>")
    chat = load_chat(path)
    assert set(chat.codec.special) == {*_CHATML, "<｜User｜>", "<｜Assistant｜>"}
    user, assistant, think = (chat.codec.added[token] for token in plain[:3])
    turn = chat.user_turn("<｜User｜> a <think>", first=False).tolist()
    assert (turn[0], turn.count(user), turn.count(assistant), turn.count(think)) == (user, 1, 1, 1)
    assert chat.text(turn) == "<｜User｜> a <think><think>\n" and chat.stop_ids == (chat.codec.special["<|endoftext|>"],)
    assert chat.rewrites_history == ("thoughts", "request", "last_answer")


def test_decoding_never_raises(folders):
    codec, rng = load_pretrained_tokenizer(folders / "llama"), np.random.default_rng(0)
    for _ in range(300):
        assert isinstance(codec.decode(rng.integers(-3, codec.vocab_size + 3, 20)), str)
    ids = codec.encode("\ud800 lone")
    assert codec.decode(ids) == "\N{REPLACEMENT CHARACTER} lone" and ids.dtype == np.int32 and not ids.flags.writeable
    assert codec.encode("up") is codec.encode("up") and codec.pad_id in codec.special.values()


# --- Images ---


def test_image_markers_become_runs_of_placeholders(folders):
    chat = load_chat(folders / "qwen2_vl")
    start, pad, end = (chat.codec.special[t] for t in ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"))
    text = "\nnow <image>, then\n<image>"
    said = text.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    whole = chat.codec.encode_template(f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n").tolist()
    first, second = [i for i, token in enumerate(whole) if token == pad]
    expected = [*whole[:first], *[pad] * 3, *whole[first + 1 : second], *[pad] * 2, *whole[second + 1 :]]
    turn = chat.user_turn(text, first=True, image_tokens=(3, 2)).tolist()
    assert turn[-len(expected) :] == expected and turn.count(pad) == 5 and turn.count(start) == turn.count(end) == 2
    plain = chat.user_turn("a <image><|image_pad|>", first=True)  # no images: every character is text
    assert pad not in plain and "a <image><|image_pad|>" in chat.text(plain)
    for text, counts, message in (
        ("<image>", (), "1 <image> markers and 0 images"),
        ("a", (4,), "0 <image> markers and 1 images"),
        ("<image><image>", (4,), "2 <image> markers and 1 images"),
        ("<image>", (0,), "every image takes at least one token"),
    ):
        with pytest.raises(ValueError, match=message):
            chat.user_turn(text, first=False, image_tokens=counts)
    with pytest.raises(ValueError, match="has no <.vision_start.>, .*its model sees no images"):
        load_chat(folders / "qwen2").user_turn("<image>", first=True, image_tokens=(4,))


# --- A rollout ---


@pytest.mark.parametrize("context", ["episode", "step"])
def test_rows_of_a_rollout_are_the_templates_conversation(folders, reference, context):
    chat = load_chat(folders / "qwen2")
    end = chat.codec.special["<|im_end|>"]
    config = presets.decoder_config("tiny-micro", vocab_size=chat.codec.vocab_size)
    graphdef, params = decoder.build(config, 1)
    engine = Engine(graphdef, config, Sampling(chat.stop_ids, 4), 512, (192,), chat.codec.pad_id)
    pool = EnvironmentPool(sokoban.make("tiny", max_steps=15))
    prompt = sokoban.prompts("compact")
    collector = Collector(engine, pool, prompt, chat, context, 0, 3, 2)
    episodes = collector.collect(params, [Task(3, "train", 0), Task(8, "train", 1)], jax.random.key(0))
    batch = pack(episodes, context=context, max_steps=3, row_length=512, row_multiple=1, pad_id=chat.codec.pad_id)
    rows = [
        episode.steps if context == "episode" else [step]
        for episode in episodes
        for step in (episode.steps[:1] if context == "episode" else episode.steps)
    ]
    for row, steps in zip(batch.tokens, rows, strict=True):
        texts = [text for step in steps for text in (prompt.first({"text": step.observation}), "answer")]
        whole, expected = reference("qwen2", texts[:-1]), []
        requests = split_at(whole, chat.codec.encode("answer").tolist() + [end])
        for request, step in zip(requests, steps, strict=True):
            sampled = step.action_tokens.tolist()
            cut = [] if sampled[-1] == end or step is steps[-1] else [end]
            expected += [*request, *sampled, *cut]
        assert row.tolist() == expected + [chat.codec.pad_id] * (512 - len(expected))


def split_at(ids, mark):
    """The pieces of a list around each stand of `mark`."""
    pieces, start = [], 0
    for i in range(len(ids)):
        if ids[i : i + len(mark)] == mark:
            pieces, start = [*pieces, ids[start:i]], i + len(mark)
    return [*pieces, ids[start:]]
