"""Text stays text: illegal characters are replaced on input, and no text becomes a control token or an image."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
from ml_collections import ConfigDict
from test_chat_templates import FAMILIES, QWEN2, make_folder
from tokenizers import models, pre_tokenizers

from stepreward.config import clean_config, parse_command_line
from stepreward.data.demonstrations import Demonstration, read_demonstrations, write_demonstrations
from stepreward.models.pretrained_tokenizer import load_pretrained_tokenizer
from stepreward.models.tokenizer import train_piece_tokenizer, train_symbol_tokenizer
from stepreward.report import write_episodes
from stepreward.rollout.chat import Chat, cut_at_images, unmarked
from stepreward.rollout.environments import EnvironmentFailure
from stepreward.rollout.episode import Episode, Task
from stepreward.rollout.game import Game
from stepreward.rollout.play import Collector
from stepreward.rollout.pools import make_pool
from stepreward.rollout.template_chat import TemplateChat, load_chat
from stepreward.text import RESERVED, clean, cleaned, whole
from stepreward.training.demonstrating import _episode

HALF = "\ud83d"  # of an emoji
BAD = "\N{REPLACEMENT CHARACTER}"

# --- Cleaning ---


@pytest.mark.parametrize(("text", "expected"), [
    ("a" + HALF + "b", f"a{BAD}b"),
    ("\ude00" + HALF, BAD * 2),
    ("\ud83d\ude00", "😀"),  # two halves that belong together
    ("a\0", f"a{BAD}"),
    (RESERVED, BAD),
    ("\ufeffa\r\n\t é 中 😀 \x1b[0m", "\ufeffa\r\n\t é 中 😀 \x1b[0m"),
])  # fmt: skip
def test_clean_replaces_what_nothing_takes(text, expected):
    assert clean(text) == expected
    assert clean(clean(text)) == clean(text)


def test_clean_text_is_the_same_object():
    value = ({"text": "a wall", "task": ("up",)}, 1.0, np.zeros(2))
    assert cleaned(value) is value


def test_whole_keeps_what_an_encoding_takes():
    assert whole(f"a\0{HALF}") == f"a\0{BAD}"


def test_a_subclass_of_str_becomes_a_str():
    assert type(clean(np.str_("up"))) is str


def test_cleaned_reaches_keys_lists_and_tuples_and_leaves_other_objects():
    array = np.zeros(2)
    found = cleaned({HALF: [("a" + HALF, array)], "n": 1})
    assert found == {BAD: [(f"a{BAD}", array)], "n": 1} and found[BAD][0][1] is array


class Odd:
    """Says half of an emoji wherever an environment may say something."""

    capabilities = frozenset({"expert"})

    def reset(self, *, seed=None, options=None):
        return self.turn()

    def step(self, action):
        if action == "break":
            raise RuntimeError("no" + HALF)
        observation, info = self.turn()
        return observation, 0.0, False, False, info

    def turn(self):
        said = {"state_key": "s" + HALF, "task": "t\0", "admissible": ("go" + HALF,)}
        info = {"won": False, "score": 0.0, "executed": True, **said}
        return {"text": "see" + HALF}, info

    def expert(self, rng=None):
        return ["go" + HALF]

    def snapshot(self):
        return ["s" + HALF]

    def close(self):
        pass


@pytest.mark.parametrize("kind", ["inline", "process"])
def test_what_an_environment_says_is_clean(kind):
    with make_pool(kind, Odd) as pool:
        observation, info = pool.call(0, "reset", seed=1)
        assert observation == {"text": f"see{BAD}"}
        assert (info["state_key"], info["task"], info["admissible"]) == (f"s{BAD}", f"t{BAD}", (f"go{BAD}",))
        assert pool.call(0, "step", "up")[0] == {"text": f"see{BAD}"}
        assert pool.call(0, "expert") == [f"go{BAD}"]
        assert pool.call(0, "snapshot") == ["s" + HALF]  # given back as it was
        with pytest.raises(EnvironmentFailure, match=f"RuntimeError: no{BAD}"):
            pool.call(0, "step", "break")


def test_a_config_s_text_is_cleaned():
    config = ConfigDict({"model": {"system": "Be" + HALF, "path": "m"}, "seed": 1}).lock()
    clean_config(config)
    assert config.to_dict() == {"model": {"system": f"Be{BAD}", "path": "m"}, "seed": 1}


def test_a_command_line_s_text_is_cleaned():
    config, _ = parse_command_line(["--config=istar_sokoban", "--config.model.system=Be \udcff"])  # a byte that is no UTF-8
    assert config.model.system == f"Be {BAD}"


def test_demonstrations_of_one_s_own_are_cleaned_as_they_are_written(tmp_path):
    odd = Demonstration("1", "train", ["a" + HALF, "b\0"], ["go" + HALF], True, 1.0)
    write_demonstrations(tmp_path / "d", [odd], {})
    found = read_demonstrations(tmp_path / "d")[0][0]
    assert (found.observations, found.actions) == ([f"a{BAD}", f"b{BAD}"], [f"go{BAD}"])


def test_told_episodes_are_written_with_odd_text(tmp_path):
    path = write_episodes(tmp_path, 1, 1, [{"steps": [{"observation": "a" + HALF}], "failure": HALF}])
    assert json.loads(path.read_text(encoding="utf-8"))["episodes"][0]["steps"][0]["observation"] == f"a{BAD}"


def test_tokenizers_are_trained_on_odd_text(tmp_path):
    symbols = train_symbol_tokenizer(["ab" + HALF], ["up" + HALF], tmp_path / "symbols")
    assert symbols.decode(symbols.encode("up" + HALF)) == f"up{BAD}"
    pieces = train_piece_tokenizer(["go up" + HALF], 270, tmp_path / "pieces")
    assert pieces.decode(pieces.encode("go" + HALF)) == f"go{BAD}"


# --- Control tokens ---

PLAIN = ["<think>", "</think>", "<tool_call>", "<|fim_prefix|>", "<tool_response>", "sokoban", "    "]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    special, _, template, end = FAMILIES["qwen2_vl"]
    return make_folder(tmp_path_factory.mktemp("qwen"), special, PLAIN, template, end)


def controls(chat, tokens):
    return [int(i) for i in tokens if int(i) in chat.codec.control.values()]


@pytest.mark.parametrize("token", [*PLAIN[:5], "<|endoftext|>", "<|im_end|>", "<|image_pad|>"])
def test_no_message_or_answer_becomes_a_control_token(qwen, token):
    chat = load_chat(qwen)
    text = f"a {token}b{token}{token}"
    for turn in ({"first": True}, {"first": False}, {"first": False, "closes_answer": True}):
        assert controls(chat, chat.user_turn(text, **turn)) == controls(chat, chat.user_turn("ab", **turn))
    assert controls(chat, chat.answer(text)) == [chat.stop_ids[0]]
    assert chat.text(chat.answer(text)) == text


def test_a_system_message_is_text(qwen):
    chat, bare = load_chat(qwen, "Answer in <think> and <tool_call>."), load_chat(qwen, "Answer.")
    opening = chat.user_turn("up", first=True)
    assert controls(chat, opening) == controls(bare, bare.user_turn("up", first=True))
    assert "system\nAnswer in <think> and <tool_call>.\n" in chat.text(opening)


def test_a_template_s_own_control_tokens_are_tokens(tmp_path):
    asks = QWEN2.replace("<|im_start|>assistant\n' }}", "<|im_start|>assistant\n<think>\n' }}")
    chat = load_chat(make_folder(tmp_path, FAMILIES["qwen2"][0], PLAIN, asks, "<|im_end|>"))
    turn = chat.user_turn("<think>", first=False).tolist()
    assert turn.count(chat.codec.added["<think>"]) == 1 and chat.text(turn).count("<think>") == 2


def test_a_sampled_control_token_is_shown_unless_it_is_special(qwen):
    chat = load_chat(qwen)
    sampled = [chat.codec.added["<think>"], *chat.codec.encode("up"), chat.codec.added["<|image_pad|>"], chat.stop_ids[0]]
    assert chat.text(np.array(sampled)) == "<think>up"


def test_added_words_and_blanks_are_read_from_text(qwen):
    codec = load_pretrained_tokenizer(qwen)
    assert codec.encode("sokoban").tolist() == [codec.added["sokoban"]]
    assert codec.added["    "] in codec.encode("a    b")


def test_a_control_token_in_the_trained_vocabulary_is_not_found_as_a_word(tmp_path):
    words = ["<|end|>", "<think>", "?", *"<|end>thik ab"]
    tokenizer = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(words))}, unk_token="?"))
    pieces = tokenizers.Regex(r"<think>|<\|end\|>|[\s\S]")  # finds both names as words of their own
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="isolated")
    tokenizer.add_special_tokens([tokenizers.AddedToken("<|end|>", special=True)])
    tokenizer.add_tokens([tokenizers.AddedToken("<think>", special=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "unk_token": "?"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    codec = load_pretrained_tokenizer(tmp_path)
    ids = codec.encode("a<think>b<|end|>").tolist()
    assert not {0, 1} & set(ids) and len(ids) == len("a<think>b<|end|>")


@pytest.mark.parametrize("pieces", [False, True])
def test_the_library_s_own_tokenizers_obey_the_same_rule(tmp_path, pieces):
    text = "up <|end|><|user|><|pad|><|vision_start|><|image_pad|><think>"
    if pieces:
        codec = train_piece_tokenizer([text] * 50, 400, tmp_path / "t", images=True)
    else:
        codec = train_symbol_tokenizer([text], ["up"], tmp_path / "t", images=True)
    special = {codec.pad_id, codec.user_id, codec.assistant_id, codec.end_id, codec.unknown_id, *codec.image_ids}
    chat = Chat(codec)
    assert not special & set(codec.encode(text).tolist())
    assert special & set(chat.user_turn(text, first=True).tolist()) == {codec.user_id, codec.assistant_id}
    assert codec.decode(codec.encode(text)) == text


# --- Templates ---


@pytest.mark.parametrize("said", ["first-question", "the-rules", "second-answer", "", " ", "\n x \n", "Qwen"])
def test_what_a_conversation_says_does_not_change_how_a_template_is_read(qwen, said):
    chat, plain = load_chat(qwen, said), load_chat(qwen, "Rules.")
    turn = chat.text(chat.user_turn(said, first=True))
    assert turn == plain.text(plain.user_turn("@", first=True)).replace("Rules.", said).replace("@", said)
    later = chat.user_turn(said, first=False, closes_answer=True)
    assert chat.text(later) == plain.text(plain.user_turn("@", first=False, closes_answer=True)).replace("@", said)


def test_a_template_that_says_the_probing_words_itself(tmp_path):
    template = QWEN2.replace("You are Qwen", "first-question the-rules first-answer")
    chat = load_chat(make_folder(tmp_path, *FAMILIES["qwen2"][:2], template, "<|im_end|>"))
    assert "first-question the-rules first-answer" in chat.text(chat.user_turn("up", first=True))


@pytest.mark.parametrize("change", [
    "lower", "upper", "title", "capitalize", "replace('  ', ' ')", "truncate(255)", "wordwrap(79)", "replace('\\r\\n', '\\n')",
])  # fmt: skip
def test_a_template_that_rewrites_messages_is_one_clear_error(tmp_path, change):
    template = QWEN2.replace("turn.content", f"(turn.content | {change})")
    folder = make_folder(tmp_path, *FAMILIES["qwen2"][:2], template, "<|im_end|>")
    with pytest.raises(ValueError, match="cannot be played turn by turn: it (changes the text|does not write every)") as caught:
        load_chat(folder)
    assert "\n" not in str(caught.value)


def test_a_template_that_rewrites_the_system_message_is_one_clear_error(tmp_path):
    template = "{{ messages[0].content | upper if messages[0].role == 'system' }}" + QWEN2.replace(
        "in messages %}", "in messages if turn.role != 'system' %}"
    )
    folder = make_folder(tmp_path, *FAMILIES["qwen2"][:2], template, "<|im_end|>")
    with pytest.raises(ValueError, match="does not show the system message 'Be brief.'"):
        load_chat(folder, "Be brief.")


def test_a_template_that_switches_on_the_system_message(tmp_path):
    template = QWEN2 + "{% if add_generation_prompt and 'thinking on' in messages[0].content %}{{ '<think>' }}{% endif %}"
    folder = make_folder(tmp_path, FAMILIES["qwen2"][0], ["<think>"], template, "<|im_end|>")
    on, off = load_chat(folder, "thinking on"), load_chat(folder, "thinking off")
    think = on.codec.added["<think>"]
    assert on.user_turn("up", first=True).tolist().count(think) == 1
    assert think not in off.user_turn("up", first=True)


def test_a_new_system_message_is_not_probed_anew(qwen):
    codec = load_pretrained_tokenizer(qwen)
    TemplateChat(codec, system="One.")
    rendered = []
    render = codec.render
    codec.render = lambda *args, **named: rendered.append(1) or render(*args, **named)
    TemplateChat(codec, system="Two.")
    assert len(rendered) == 1


def test_several_templates_without_a_default_are_one_clear_error(tmp_path):
    several = [{"name": "tool_use", "template": QWEN2}, {"name": "rag", "template": QWEN2}]
    folder = make_folder(tmp_path, *FAMILIES["qwen2"][:2], several, "<|im_end|>")
    with pytest.raises(ValueError, match="rendering failed .ValueError: This model has multiple chat templates") as caught:
        load_chat(folder, "Be brief.")
    assert "\n" not in str(caught.value)


def test_a_template_in_the_processor_s_file(qwen, tmp_path):
    folder = make_folder(tmp_path, FAMILIES["qwen2_vl"][0], PLAIN, None, "<|im_end|>")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": QWEN2}))
    np.testing.assert_array_equal(load_chat(folder).user_turn("a", first=True), load_chat(qwen).user_turn("a", first=True))


# --- Where answers end ---

_STATED = {
    "generation_config.json": ("generation_config.json", lambda ids: {"eos_token_id": ids}),
    "generation_config.json, one id": ("generation_config.json", lambda ids: {"eos_token_id": ids[0]}),
    "config.json": ("config.json", lambda ids: {"eos_token_id": ids}),
    "config.json, one id": ("config.json", lambda ids: {"eos_token_id": ids[0]}),
    "text_config": ("config.json", lambda ids: {"text_config": {"eos_token_id": ids}}),
    "special_tokens_map.json": ("special_tokens_map.json", lambda ids: {"eos_token": {"content": "<|endoftext|>"}}),
}


@pytest.mark.parametrize("place", _STATED)
def test_an_end_is_read_wherever_it_is_stated(tmp_path, place):
    file, content = _STATED[place]
    folder = make_folder(tmp_path, *FAMILIES["qwen2"])
    ends = load_pretrained_tokenizer(folder).added
    (folder / file).write_text(json.dumps(content([ends["<|endoftext|>"]])))
    assert load_chat(folder).stop_ids == (ends["<|im_end|>"], ends["<|endoftext|>"])


def test_ends_of_several_places_are_all_stops(tmp_path):
    folder = make_folder(tmp_path, *FAMILIES["llama"], ends=["<|end_of_text|>"], bos="<|begin_of_text|>")
    ids = load_pretrained_tokenizer(folder).added
    (folder / "config.json").write_text(json.dumps({"eos_token_id": None, "text_config": {"eos_token_id": [ids["<|eom_id|>"]]}}))
    assert load_chat(folder).stop_ids == tuple(ids[t] for t in ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"))


def test_an_end_that_was_added_as_a_plain_word_is_not_shown(tmp_path):
    folder = make_folder(tmp_path, FAMILIES["qwen2"][0], ["<end_of_turn>"], QWEN2, "<|im_end|>", ends=["<end_of_turn>"])
    chat = load_chat(folder)
    end = chat.codec.added["<end_of_turn>"]
    assert end in chat.stop_ids and chat.text([*chat.codec.encode("up"), end]) == "up"


@pytest.mark.parametrize("wrong", ["2", True, -1, [1, None]])
def test_a_stated_end_that_is_no_id_is_named(tmp_path, wrong):
    folder = make_folder(tmp_path, *FAMILIES["qwen2"])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
    with pytest.raises(ValueError, match="generation_config.json has eos_token_id="):
        load_pretrained_tokenizer(folder)


# --- Images ---


@pytest.mark.parametrize("said", ["<image>", "a<image><image>", "<IMAGE>", f"<{BAD}image>", "<ima", "<", "<|image_pad|>", "<<image>>"])
def test_only_the_prompt_places_an_image(said):
    view = unmarked({"text": said, "admissible": (said,), "n": 1})
    parts = cut_at_images(f"{view['text']}\n<image>{view['admissible'][0].lower()}", [4])
    assert parts == [f"{said}\n", said.lower()]


def test_two_texts_do_not_add_up_to_a_marker():
    assert cut_at_images(unmarked("<ima") + unmarked("ge>") + "<image>", [1]) == ["<image>", ""]


def test_a_view_keeps_what_is_no_text():
    picture = np.zeros((2, 2, 3), np.uint8)
    assert unmarked({"image": picture})["image"] is picture


class Signs:
    """Shows a picture, and says `<image>` itself."""

    capabilities = frozenset({"image", "expert"})

    def reset(self, *, seed=None, options=None):
        return {"text": "<image>!", "image": np.zeros((2, 2, 3), np.uint8)}, {"won": True, "executed": True, "state_key": "a"}

    def step(self, action):
        observation, info = self.reset()
        return observation, 1.0, False, False, info

    def close(self):
        pass


class Told:
    """One picture, and all that was said around it."""

    def window(self, observation, history):
        return "".join(f"{before['text']}{answer}" for before, answer in history) + f"{observation['text']}<image>"

    def parse(self, text):
        return text

    def answer(self, action):
        return action


@pytest.fixture
def signs(tmp_path):
    """A collector over `Signs` whose every picture takes two tokens."""
    codec = train_symbol_tokenizer(["<image>!"], ["up"], tmp_path / "t", images=True)
    reader = SimpleNamespace(read=lambda image: image, tokens=lambda image: [2])
    sampling = SimpleNamespace(max_answer_tokens=99)
    engine = SimpleNamespace(holds=lambda cached, new=0: True, buckets=(99,), max_length=999, sampling=sampling)
    with make_pool("inline", Signs) as pool:
        yield Collector(engine, pool, Told(), Chat(codec), "step", 2, 5, 4, reader=reader)


def test_a_rollout_takes_no_image_from_what_is_said(signs):
    game = Game(Episode(Task(1, "train", 0)), 0, 0)
    signs._begin([game])
    game.history.append((game.view, "<image>"))
    signs._writer.write(game)
    start, pad, end = signs.chat.codec.image_ids
    said = signs.chat.codec.encode("<image>!<image><image>!").tolist()
    assert game.prompt_tokens.tolist()[1:-1] == [*said, start, pad, pad, end]
    assert game.episode.final_observation == game.view["text"] == "<image>!"


def test_a_demonstration_takes_no_image_from_what_is_said(signs):
    parts = SimpleNamespace(collector=signs, chat=signs.chat, prompt=signs.prompt)
    record = Demonstration("1", "train", ["<image>!"] * 3, ["<image>", "up"], True, 1.0)
    episode = _episode(record, [np.zeros((2, 2, 3), np.uint8)] * 2, 0, parts)
    start, pad, end = signs.chat.codec.image_ids
    said = signs.chat.codec.encode("<image>!<image><image>!").tolist()
    assert episode.steps[1].prompt_tokens.tolist()[1:-1] == [*said, start, pad, pad, end]
    assert episode.steps[1].observation == "<image>!"
