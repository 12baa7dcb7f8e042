"""Runs in a browser: live curves, recorded episodes with the credit of each step, and trees, also as one file to share."""

from stepreward.view.content import Content
from stepreward.view.page import write_page
from stepreward.view.server import serve_view, viewing

__all__ = ["Content", "serve_view", "viewing", "write_page"]
