"""The experiments on the real environments: every preset loads, has the paper's numbers, and is consistent."""

import pytest

from stepreward.config import load_config_file
from stepreward.errors import UserError
from stepreward.models.published import LAPTOP, MODELS
from stepreward.training import setup

ENVIRONMENTS = {
    "istar": ("search_qa", "webshop", "alfworld", "virtualhome", "sotopia", "textcraft", "scienceworld"),
    "spa": ("search_qa", "webshop", "alfworld", "virtualhome", "textcraft", "scienceworld"),
}
EXPERIMENTS = [f"{method}_{name}" for method, names in ENVIRONMENTS.items() for name in names]
NEEDS = {"alfworld": "alfworld", "virtualhome": "virtualhome_eval", "textcraft": "textcraft", "scienceworld": "scienceworld"}


def load(root, experiment, preset="tiny"):
    return load_config_file(f"{root}/configs/{experiment}.py:{preset}")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_what_runs_from_scratch_contradicts_nothing(root, experiment):
    name = experiment.partition("_")[2]
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    for preset in ("tiny", "micro"):
        c = load(root, experiment, preset)
        assert c.environment.name == name and c.credit.method == experiment.partition("_")[0]
        setup.check(c)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_published_model_speaks_in_the_form_of_the_paper(root, experiment):
    form = experiment.partition("_")[0]
    for model in MODELS:
        c = load(root, experiment, model)
        assert (c.environment.preset, c.environment.prompt, c.model.path) == (form, form, MODELS[model])
        assert c.rollout.max_row_tokens >= c.rollout.max_prompt_tokens + c.rollout.max_answer_tokens


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_laptop_model_plays_what_the_tiny_model_plays(root, experiment):
    for model in LAPTOP:
        c, tiny = load(root, experiment, model), load(root, experiment)
        assert (c.environment, c.rollout.context, c.rollout.max_steps) == (tiny.environment, tiny.rollout.context, tiny.rollout.max_steps)
        assert (c.model.preset, c.model.path) == (model, LAPTOP[model]) and c.lora.rank
        assert c.rollout.max_row_tokens >= c.rollout.max_prompt_tokens + c.rollout.max_answer_tokens


def test_the_papers_numbers(root):
    webshop, sotopia = load(root, "istar_webshop", "paper"), load(root, "istar_sotopia", "paper")
    assert (webshop.rollout.groups, webshop.rollout.group_size, webshop.rollout.max_steps, webshop.rollout.history) == (16, 8, 10, 2)
    assert (webshop.policy.learning_rate, webshop.prm.learning_rate, webshop.credit.options.beta) == (5e-7, 1e-6, 0.05)
    assert webshop.train.env_steps == 200 * 16 * 8 * 10
    search = load(root, "istar_search_qa", "paper")
    assert (search.rollout.max_steps, search.rollout.history, search.rollout.invalid_penalty) == (4, 4, 0.0)
    assert (sotopia.credit.options.episode_advantage, sotopia.rollout.temperature, sotopia.rollout.max_answer_tokens) == ("grpo", 0.7, 2048)


def test_an_unknown_preset_is_one_line(root):
    with pytest.raises(UserError, match="unknown preset 'huge'; this file offers: tiny, micro, real, paper"):
        load(root, "istar_webshop", "huge")
