"""Serves a model through OpenAI's chat completions API: loads models, batches requests, and runs the web server."""

from stepreward.serve.batcher import Batcher, Request
from stepreward.serve.models import Served, load_folder, load_run
from stepreward.serve.server import running, serve

__all__ = ["Batcher", "Request", "Served", "load_folder", "load_run", "running", "serve"]
