"""The TFDS builder behind `demonstrations.py`; a module of its own, so that TensorFlow Datasets is imported on use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

SPLIT = "episodes"


class Demonstrations(tfds.core.GeneratorBasedBuilder):
    """Episodes of text observations and text actions, in the order given; nothing is downloaded."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, records: Iterable[Mapping[str, Any]], **kwargs):
        self._records = records
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        features = tfds.features.FeaturesDict(
            {
                "task": text(),
                "split": text(),
                "observations": tfds.features.Sequence(text()),
                "actions": tfds.features.Sequence(text()),
                "success": np.bool_,
                "outcome": np.float32,
            }
        )
        # The direct constructor: the usual helper looks for a metadata folder beside the module.
        return tfds.core.DatasetInfo(
            builder=self, description="Demonstrations for agents.", features=features, disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self):
        yield from enumerate(self._records)
