"""The settings that the papers of iStar and SPA-RL use in all their environments. A config adds those of its environment."""

from __future__ import annotations

from ml_collections import ConfigDict

from stepreward.configs.common.base import FITS_ROWS, use_model


def istar(c: ConfigDict, model: str = "qwen2.5-7b") -> None:
    """iStar (arXiv 2509.19199): no warm start, no KL, constant learning rates, one PRM update a batch.

    Two settings of the paper have no key. The number of iterations is given in environment steps (`train.env_steps`). The paper
    evaluates at temperature 0.4, while `eval` samples at the temperature of training.

    Args:
      c: the config to change.
      model: preset of the policy.
    """
    use_model(c, model)
    c.mesh.fit = FITS_ROWS  # the paper trains whole weights, so the run must not switch to adapters
    c.rollout.update({"context": "step", "group_size": 8, "temperature": 1.0, "top_k": 0, "top_p": 1.0})
    c.sft.update({"episodes": 1, "updates": 0})
    c.credit.update({"method": "istar", "variant": "paper", "outcome": "return", "outcome_scale": 1.0})
    c.credit.options.update({"alpha": 1.0, "beta": 0.05, "episode_advantage": "rloo"})
    c.prm.update({"learning_rate": 1e-6, "warmup_updates": 0, "weight_decay": 0.0, "max_grad_norm": 10.0})
    c.prm.update({"minibatch_groups": 0, "epochs": 1, "resync": False, "replay": 0, "warmup_batches": 0})
    c.policy.update({"learning_rate": 5e-7, "warmup_updates": 0, "weight_decay": 0.0, "minibatch_rows": 64, "epochs": 1})
    c.policy.update({"ratio": "step", "clip_low": 0.2, "clip_high": 0.2, "dual_clip": 0.0, "aggregation": "step-mean"})
    c.policy.update({"advantage_norm": "none", "entropy_coef": 0.0, "kl_coef": 0.0})
    c.eval.update({"episodes": 128, "every": 5, "prm_as_policy_every": 0})
    c.checkpoint.update({"every": 50, "keep": 2})


def istar_text(c: ConfigDict, environment: str, *, steps: int, prompt_tokens: int, tested: int) -> None:
    """iStar's settings for WebShop: text prompts that show the last two turns, as in verl-agent.

    Args:
      c: the config to change.
      environment: name of the environment.
      steps: steps an episode, at most.
      prompt_tokens: tokens of the longest prompt.
      tested: tasks an evaluation.
    """
    istar(c)
    c.environment.update({"name": environment, "preset": "istar", "prompt": "istar"})
    c.rollout.update({"groups": 16, "max_steps": steps, "max_rows": 128, "history": 2, "invalid_penalty": 0.1})
    c.rollout.update({"max_prompt_tokens": prompt_tokens, "max_answer_tokens": 512, "max_row_tokens": prompt_tokens + 512})
    c.train.update({"env_steps": 200 * 16 * 8 * steps, "chunk_rows": 8})  # 200 iterations of full-length episodes
    c.eval.update({"episodes": tested})


def spa(c: ConfigDict, environment: str, *, tasks: int, rollouts: int, steps: int, tested: int, outcome: str) -> None:
    """SPA-RL (arXiv 2505.20732) with Llama-3.2-3B. Settings that the paper does not state are taken from its public release.

    These are all optimizer settings, LoRA in PPO (rank 8 on queries and values), and token-level PPO as in TRL. Two settings have no
    key: the supervised learning rate does not decay along a cosine, and a batch has 30 episodes, since it consists of
    whole tasks, in place of 32.

    Args:
      c: the config to change.
      environment: name of the environment.
      tasks: training tasks.
      rollouts: explored episodes a task.
      steps: steps an episode, at most.
      tested: tasks of the final evaluation.
      outcome: `credit.outcome`.
    """
    use_model(c, "llama3.2-3b")
    c.environment.update({"name": environment, "preset": "spa", "prompt": "spa"})
    spa_adapters(c)
    c.mesh.fit = FITS_ROWS
    c.rollout.update({"context": "episode", "history": 0, "groups": 30 // rollouts, "group_size": rollouts, "max_steps": steps})
    c.rollout.update({"max_rows": 32, "temperature": 1.0})
    c.rollout.update({"max_answer_tokens": 512, "max_prompt_tokens": 2048, "max_row_tokens": 4096})
    c.sft.update({"episodes": tasks, "rows": 16, "updates": 3 * tasks // 16, "learning_rate": 2e-5})
    c.sft.warmup_updates = int(0.03 * c.sft.updates)
    c.exploration.update({"tasks": tasks, "rollouts": rollouts})
    c.estimator.update({"head": "mlp", "learning_rate": 3e-6, "warmup_updates": 500, "decay_updates": 0, "weight_decay": 0.01})
    c.estimator.update({"minibatch_episodes": 16, "epochs": 1, "held_out": 0.0, "refresh_every": 0})
    c.credit.update({"method": "spa", "variant": "paper", "outcome": outcome})
    c.credit.options.update({"alpha": 1.0, "beta": 0.5, "discount": 0.99, "trace": 0.95, "level": "token", "observation": "decay"})
    c.policy.update({"warmup_updates": 0, "epochs": 4, "ratio": "token"})
    c.policy.update({"aggregation": "token-mean", "clip_low": 0.2, "clip_high": 0.2})
    c.policy.update({"kl_reward_coef": 0.3, "kl_reward_target": 6.0})
    c.train.update({"mode": "offline", "env_steps": tasks * rollouts * steps, "chunk_rows": 8})
    c.eval.update({"episodes": tested, "final_episodes": tested, "final_temperature": 0.0})


def spa_adapters(c: ConfigDict) -> None:
    """Trains a published model as SPA-RL does: adapters, and a value head on the policy's backbone.

    The warm start trains whole weights if they fit into the devices' memory, and adapters otherwise.
    """
    c.mesh.fit = FITS_ROWS + ("lora.sft", "sft.learning_rate")
    c.lora.update({"rank": 8, "alpha": 16.0, "targets": ("query", "value")})
    c.critic.update({"backbone": "shared", "head": "linear", "clip": 0.2, "coef": 0.1})
    c.policy.update({"learning_rate": 1e-5, "minibatch_rows": 32})
