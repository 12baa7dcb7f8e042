"""Search QA's prompts: what they show, and which answers they accept."""

import pytest

from stepreward.envs.protocol import Prompt, prompt_view
from stepreward.envs.search_qa import make, prompts

NAMES = ("compact", "istar", "spa", "search_r1", "igpo", "arpo")
ACTIONS = ("search[ada holm]", "answer[the Tann, in Ossby]", "search[a [b] c]", "answer[x = {1}]", "search[two\nlines]", "answer[<b>]")


def test_names():
    assert all(isinstance(prompts(name), Prompt) for name in NAMES)
    with pytest.raises(ValueError, match="the prompts are compact, istar, spa, search_r1, igpo, arpo"):
        prompts("react")


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_read_back(name):
    prompt = prompts(name)
    for action in ACTIONS if name != "spa" else [action for action in ACTIONS if "\n" not in action]:
        assert prompt.parse(prompt.answer(action)) == action
    for text in (
        "",
        "  ",
        "no action",
        None,
        7,
        "<search></search>",
        "<answer> </answer>",
        "<search",
        "Action:",
        "Action: jump",
        "<answer>",
        "<think>a</think><tool_call>{</tool_call>",
        "<tool_call>[1]</tool_call>",
        "[" * 5000,
        "<tool_call>" + "[" * 9000,
        "nonsense",
    ):
        assert prompt.parse(text) is None  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_is_how_an_answer_begins(name):
    prompt = prompts(name)
    lead, answer = prompt.reference("The Tann")
    assert answer.strip() == "The Tann" and prompt.answer("answer[The Tann]").startswith(lead + answer)


@pytest.mark.parametrize("name", ["search_r1", "arpo"])
def test_output_is_cut_at_the_first_closing_tag(name):
    said = {
        "<think>a</think><search> a b </search><answer>\\boxed{c}</answer>": "search[a b]",
        "<think>a</think><answer>\\boxed{c}</answer><search>a</search>": "answer[c]" if name == "arpo" else "answer[\\boxed{c}]",
        "<SEARCH>a</search>": "search[a]",
        "<search>a</answer>": None,
        "<search>a": None,
        "a</search>": None,
    }
    assert {text: prompts(name).parse(text) for text in said} == said


def test_verl_agents_form_requires_thoughts_and_one_action():
    prompt = prompts("istar")
    assert prompt.parse("<think>a</think><search>b</search>") == "search[b]"
    assert prompt.parse("<search>b</search>") is None
    assert prompt.parse("<think>a</think><search>b</search><answer>c</answer>") is None


def test_the_compact_form_needs_no_closing_tag():
    prompt = prompts("compact")
    said = {"<search> a b": "search[a b]", "<answer>c</answer> more": "answer[c]", "<search> a </answer>": None, "search a": None}
    assert {text: prompt.parse(text) for text in said} == said
    assert prompt.answer("search[ada holm]") == "<search> ada holm" and prompt.reference("ada") == ("<answer>", " ada")


def test_igpos_tool_calls():
    def call(text):
        return prompts("igpo").parse(f"<think>a</think>\n<tool_call>\n{text}\n</tool_call>")

    assert call('{"name": "search", "arguments": {"query": ["a", "b"]}}') == "search[a b]"
    assert call('{"name": "search", "arguments": {"query": "a"}}') == "search[a]"
    for bad in (
        '{"name": "browse", "arguments": {"query": "a"}}',
        '{"name": "search"}',
        '{"name": "search", "arguments": {"query": [1]}}',
        '{"name": "search", "arguments": {"query": []}}',
        '{"name": "search", "arguments": "a"}',
        "7",
        "null",
        "not json",
    ):
        assert call(bad) is None  # fmt: skip
    assert prompts("igpo").parse('<answer>a</answer><tool_call>{"name": "search"}</tool_call>') == "answer[a]"
    assert prompts("igpo").parse(prompts("igpo").answer("search[</tool_call>]")) == "search[</tool_call>]"


def test_arpos_answer_stands_in_a_box():
    prompt = prompts("arpo")
    for text, action in {r"so \boxed{a {b}} ": "answer[a {b}]", r"\boxed{a} \boxed{c}": "answer[c]", "a": None, r"\boxed{a": None}.items():
        assert prompt.parse(f"<answer>{text}</answer>") == action


@pytest.mark.parametrize(
    ("name", "opening"),
    [
        ("search_r1", "<information>Doc 1(Title: "),
        ("istar", "<information>Doc 1"),
        ("arpo", "<result>\nDoc 1"),
        ("igpo", "<tool_response>\nDoc 1"),
    ],
)
def test_documents_stand_between_the_papers_tags(name, opening):
    prompt, environment = prompts(name), make(name, people=80, questions=40, held_out=10)()
    observation, info = environment.reset(seed=0)
    start = prompt_view(observation, info)
    assert prompt.first(start).endswith(f"Question: {info['task']}\n") and info["reference_answer"] not in prompt.first(start)
    action = environment.expert()[0]
    observation, *_, info = environment.step(action)
    found = prompt_view(observation, info)
    assert prompt.later(found).strip().startswith(opening)
    assert prompt.window(found, [(start, prompt.answer(action))]) == prompt.first(start) + prompt.answer(action) + prompt.later(found)
    invalid = environment.step(None)
    assert opening not in prompt.later(prompt_view(invalid[0], invalid[-1])) and len(prompt.later(invalid[0])) > 40


def test_the_other_forms():
    environment = make("tiny", people=80, questions=40, held_out=10)()
    observation, info = environment.reset(seed=0)
    start, action = prompt_view(observation, info), environment.expert()[0]
    found, *_, after = environment.step(action)
    view = prompt_view(found, after)
    compact, spa = prompts("compact"), prompts("spa")
    assert compact.first(start) == f" {info['task']}" and compact.later(view) == f" {found['text']}"
    assert compact.window(view, [(start, "<search> x")]) == f" {info['task']}\n<search> x\n {found['text']}"
    assert spa.window(view, [(start, spa.answer(action))]).endswith(f"Action: {action}\n\nObservation:\n{found['text']}")
