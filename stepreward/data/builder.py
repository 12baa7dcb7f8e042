"""The TFDS builders that `storage.py` uses. They are in a separate module so that TensorFlow Datasets is imported only when needed."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

SPLIT = "episodes"

_text = tfds.features.Text


class _Episodes(tfds.core.GeneratorBasedBuilder):
    """Episodes in the order given; nothing is downloaded."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, records: Iterable[Mapping[str, Any]], **kwargs):
        self._records = records
        super().__init__(**kwargs)

    @abc.abstractmethod
    def _info(self) -> tfds.core.DatasetInfo:
        """The description and features of the dataset."""

    def _info_of(self, description: str, features: Mapping[str, Any]) -> tfds.core.DatasetInfo:
        # The constructor is called directly because TFDS's usual helper looks for a metadata folder next to the module.
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, description=description, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self):
        yield from enumerate(self._records)


class Demonstrations(_Episodes):
    """Episodes of text observations and text actions."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self._info_of(
            "Demonstrations for agents.",
            {
                "task": _text(),
                "split": _text(),
                "observations": tfds.features.Sequence(_text()),
                "actions": tfds.features.Sequence(_text()),
                "events": tfds.features.Sequence(_text()),
                "views": tfds.features.Sequence(_text()),
                "success": np.bool_,
                "outcome": np.float32,
            },
        )


class Recordings(_Episodes):
    """Sampled episodes of `S` steps. The tokens of all steps are concatenated and stored with the length of each step."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self._info_of(
            "Recorded episodes of agents.",
            {
                "seed": np.int64,
                "split": _text(),
                "group": np.int64,
                "success": np.bool_,
                "truncated": np.bool_,
                "score": _array(np.float64, ()),
                "failure": _json(),
                "end": _text(),
                "needs": _json(),
                "final_observation": _text(),
                "final_distance": _array(np.float64, ()),
                "prompt_tokens": _array(np.int32),
                "prompt_lengths": _array(np.int32),
                "action_tokens": _array(np.int32),
                "action_lengths": _array(np.int32),
                "log_prob": _array(np.float32),
                "entropy": _array(np.float32),
                "observations": _json(),
                "outputs": _json(),
                "actions": _json(),
                "rewards": _array(np.float64),
                "executed": _array(np.bool_),
                "state_keys": _json(),
                "distances": _array(np.float64),
                "cut": _array(np.int64),
                "stopped": _array(np.bool_),
                "events": _json(),
                "turn_rewards": _array(np.float64),
                "reference": _json(),
                "answer_log_probs": _array(np.float64),
                "automaton_states": _array(np.int64),
                "final_automaton_state": np.int64,
            },
        )


def _array(dtype, shape=(None,)) -> tfds.features.Tensor:
    # Stored as bytes because the lists of a tf.Example round float64 to float32 and are slower to write.
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=tfds.features.Encoding.BYTES)


def _json() -> tfds.features.Text:
    # All steps in one JSON text: JSON can represent None, and takes two thirds of the time of Sequence(Text).
    return _text()
