"""Samples tokens with temperature, top-k and top-p."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How answers are sampled.

    Attributes:
      stop_ids: tokens that end an answer; such a token is kept as the last one of the answer.
      max_answer_tokens: the most tokens of an answer; a longer one is cut there, and parsed as it is.
      temperature: divides the logits; 0 is greedy (log-probabilities are then those of temperature 1).
      top_k: keep the k most likely tokens (0: all).
      top_p: keep the smallest set of most likely tokens whose probability reaches p (1: all).
    """

    stop_ids: tuple[int, ...]
    max_answer_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature} must be a finite number of at least 0 (0 is greedy).")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be at least 0 (0 keeps all tokens).")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1] (1 keeps all tokens).")
        if self.max_answer_tokens < 1:
            raise ValueError(f"max_answer_tokens={self.max_answer_tokens} must be at least 1.")


def truncate(log_p_BxV: Array, top_k: int, top_p: float) -> Array:
    """Sets the log-probabilities of tokens outside top-k and top-p to −∞. The most likely token is always kept."""
    if top_k and top_k < log_p_BxV.shape[-1]:
        threshold = jax.lax.top_k(log_p_BxV, top_k)[0][:, -1:]
        log_p_BxV = jnp.where(log_p_BxV < threshold, -jnp.inf, log_p_BxV)
    if top_p < 1:
        ordered = jnp.sort(jax.nn.softmax(log_p_BxV, axis=-1), axis=-1, descending=True)
        before = jnp.cumsum(ordered, axis=-1) - ordered  # mass of strictly likelier tokens
        kept = jnp.sum(before < top_p, axis=-1, keepdims=True)
        threshold = jnp.take_along_axis(ordered, kept - 1, axis=-1)
        log_p_BxV = jnp.where(jax.nn.softmax(log_p_BxV, axis=-1) < threshold, -jnp.inf, log_p_BxV)
    return log_p_BxV


def sample(log_p_BxV: Array, keys_B: Array, sampling: Sampling) -> Array:
    """Samples one token for each row with the row's own key, so that the draw does not depend on other rows."""
    if sampling.temperature == 0:
        return jnp.argmax(log_p_BxV, axis=-1).astype(jnp.int32)
    log_p_BxV = truncate(log_p_BxV, sampling.top_k, sampling.top_p)
    return jax.vmap(jax.random.categorical)(keys_B, log_p_BxV).astype(jnp.int32)
