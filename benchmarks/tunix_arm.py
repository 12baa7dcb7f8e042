"""The Tunix arm of the benchmarks: the sampler and the jitted GRPO step of Tunix 0.1.7, on the same weights and tokens.

It needs its own virtual environment, because Tunix pins other versions of packages than this project:

    python -m venv ~/tunix-venv
    ~/tunix-venv/bin/pip install google-tunix==0.1.7
    python benchmarks/rollout.py --model=llama-tiny --batch=16 --tunix-python=$HOME/tunix-venv/bin/python

The benchmark starts this file and sends requests as JSON lines to its standard input. Answers go to standard output, one line each;
Tunix's own output goes to standard error. This file imports nothing from this project.

Tunix keeps no cache between calls, so each turn prefills the whole conversation again. Two ways of doing that are timed:
* bucketed: Tunix's default, one sampler with a cache for the longest conversation, and prompts padded to the next power of two;
* exact: no padding, and for each turn a sampler with a cache of exactly that turn's length. Nobody would use it in practice; it is a
  lower bound on the cost of prefilling again.
"""

import json
import os
import sys
import time

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # redirect all other output to standard error

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3.model import Llama3, ModelConfig
from tunix.rl import algo_core
from tunix.rl.common import TrainExample
from tunix.rl.grpo.grpo_learner import GRPOConfig
from tunix.rl.trainer import Trainer
from tunix.sft.peft_trainer import TrainingConfig

PAD = 0


def now():
    """Returns the current wall-clock and CPU seconds."""
    return time.perf_counter(), time.process_time()


def since(start):
    """Returns the times since `now()`, as fields of an answer."""
    return {name: end - begin for name, end, begin in zip(("seconds", "cpu_seconds"), now(), start)}


class Tokens:
    """Replaces a tokenizer, for prompts that are already lists of tokens."""

    def encode(self, tokens):
        return list(tokens)

    def decode(self, tokens):
        return ""

    def bos_id(self):
        return None

    def eos_id(self):
        return -1

    def pad_id(self):
        return PAD


def make_model(shape, weights):
    """Makes Tunix's Llama 3 with our weights."""
    config = ModelConfig(
        num_layers=shape["num_layers"],
        vocab_size=shape["vocab_size"],
        embed_dim=shape["embed_dim"],
        hidden_dim=shape["mlp_dim"],
        num_heads=shape["num_heads"],
        head_dim=shape["head_dim"],
        num_kv_heads=shape["num_kv_heads"],
        rope_theta=1_000_000,
        norm_eps=shape["norm_eps"],
        weight_tying=True,
    )
    model = Llama3(config, rngs=nnx.Rngs(0))
    put = lambda parameter, name: parameter.set_value(jnp.asarray(weights[name]))
    put(model.embedder.input_embedding, "embedding")
    put(model.final_norm.w, "final_norm/scale")
    for index, layer in enumerate(model.layers):
        put(layer.input_layernorm.w, f"layers/{index}/attention_norm/scale")
        put(layer.post_attention_layernorm.w, f"layers/{index}/mlp_norm/scale")
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")):
            put(getattr(layer.attn, f"{theirs}_proj").w, f"layers/{index}/attention/{ours}")
        for name in ("gate", "up", "down"):
            put(getattr(layer.mlp, f"{name}_proj").kernel, f"layers/{index}/mlp/{name}")
    return model


class Arm:
    """The requests: each method answers one."""

    def start(self, shape, weights):
        self.shape, self.weights = shape, dict(np.load(weights))
        self.model = make_model(shape, self.weights)
        self.players = {}
        return {"jax": jax.__version__, "backend": jax.default_backend()}

    def rollout(self, name, prompts, answer, exact):
        """Prepares an arm that plays `prompts[turns, batch, tokens]` and answers each turn with `answer` tokens."""
        said = np.load(prompts)["prompts"]
        turns, batch, size = said.shape
        lengths = [size * (turn + 1) + answer * turn for turn in range(turns)]
        if not exact:
            lengths = [1 << (length - 1).bit_length() for length in lengths]
        s = self.shape
        cache = lambda slots: CacheConfig(
            cache_size=slots, num_layers=s["num_layers"], num_kv_heads=s["num_kv_heads"], head_dim=s["head_dim"]
        )
        slots = [length + answer if exact else max(lengths) + answer for length in lengths]
        made = {n: Sampler(self.model, Tokens(), cache(n)) for n in sorted(set(slots))}
        self.players[name] = (said, answer, lengths, [made[n] for n in slots])
        return {"lengths": lengths, "slots": slots}

    def play(self, name, greedy=False):
        """Plays a rollout without stop tokens, so that all answers have full length."""
        said, answer, lengths, samplers = self.players[name]
        how = {} if greedy else {"temperature": 1.0, "top_p": 1.0}
        never = [self.shape["vocab_size"] + 1]
        conversations, sampled = [[] for _ in said[0]], []
        start = now()
        for turn, (prompts, length, sampler) in enumerate(zip(said, lengths, samplers)):
            conversations = [c + p for c, p in zip(conversations, prompts.tolist())]
            out = sampler(conversations, answer, max_prompt_length=length, return_logprobs=True, eos_tokens=never, seed=turn, **how)
            conversations = [c + t.tolist() for c, t in zip(conversations, out.tokens)]
            sampled.append(np.stack(out.tokens))
        times = since(start)
        return {**times, "tokens": np.stack(sampled, axis=1).reshape(len(said[0]), -1).tolist() if greedy else []}

    def update(self, batch, optimizer, clip):
        """Prepares Tunix's trainer, its GRPO loss without a KL term, and one batch."""
        arrays = {name: jnp.asarray(x) for name, x in np.load(batch).items()}
        clipping = optax.clip_by_global_norm(optimizer.pop("max_grad_norm"))
        made = optax.chain(clipping, optax.adamw(**optimizer))
        config = GRPOConfig(beta=0.0, epsilon=clip, loss_agg_mode="token-mean", num_generations=2)
        config.temperature = 1.0
        trainer = Trainer(
            make_model(self.shape, self.weights),
            made,
            TrainingConfig(eval_every_n_steps=10**9, max_steps=10**9),
            custom_checkpoint_metadata_fn=dict,
        )
        loss = lambda model, train_example, algo_config: algo_core.grpo_loss_fn(
            model, train_example, algo_config=config, pad_id=PAD, eos_id=-1
        )
        trainer.with_loss_fn(loss, has_aux=True)
        trainer.with_gen_model_input_fn(lambda example: {"train_example": example, "algo_config": config})
        self.step_fn, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)
        self.trainer = trainer
        self.example = TrainExample(
            prompt_ids=arrays["prompts"],
            prompt_mask=arrays["prompts"] != PAD,
            completion_ids=arrays["answers"],
            completion_mask=jnp.ones(arrays["answers"].shape, bool),
            advantages=arrays["advantages"],
            ref_per_token_logps=None,
            old_per_token_logps=arrays["log_prob_old"],
        )
        return {}

    def step(self):
        """Runs one update."""
        start = now()
        loss, aux, norm = self.step_fn(self.example)
        jax.block_until_ready((loss, aux, norm, nnx.state(self.trainer.model)))
        times = since(start)
        return {**times, "loss": float(loss), "grad_norm": float(norm)}


def main():
    arm = Arm()
    for line in sys.stdin:
        request = json.loads(line)
        ANSWERS.write(json.dumps(getattr(arm, request.pop("do"))(**request)) + "\n")
        ANSWERS.flush()


if __name__ == "__main__":
    main()
