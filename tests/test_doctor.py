"""`stepreward doctor` says what is installed and what fits, and notices what is missing."""

import json
import sys
from importlib import metadata

import pytest

from stepreward.launch import doctor


@pytest.fixture
def said(monkeypatch, capsys):
    """`said(*flags)`: the exit code and what was printed."""

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["doctor", *flags])
        return doctor.main(), capsys.readouterr().out

    return run


def test_everything_that_is_needed_is_here(said):
    code, text = said("--json")
    found = json.loads(text)
    assert code == 0 and found["machine"]["cores"] >= 1 and found["devices"]["backend"] == "cpu"
    assert all(package["fits"] for package in found["needed"].values()) and "jax" in found["needed"]
    assert found["extras"]["test"] == [] and found["extras"]["cuda"]  # jax is here, and what its extra needs is not
    assert found["models"]["smollm2-135m"].startswith("adapters") and "qwen2.5-7b" in found["models"]
    code, text = said()
    assert code == 0 and "extras installed: " in text and "extra not installed: cuda lacks " in text and "✗" not in text


def test_what_is_missing_is_named(said, monkeypatch):
    version = metadata.version
    fake = {"optax": "0.0.1"}

    def found(name):
        if name == "chex":
            raise metadata.PackageNotFoundError(name)
        return fake.get(name) or version(name)

    monkeypatch.setattr(doctor.metadata, "version", found)
    code, text = said()
    assert code == 1 and "✗ chex is missing: " in text and "✗ optax 0.0.1: " in text and "\nmodel " not in text
