"""The documentation site builds without a warning, its anchors resolve, and its pages load nothing from elsewhere."""

import html
import logging
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("material")
pytest.importorskip("mkdocstrings")

LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "srcset"}  # what a browser fetches unasked


class Page(HTMLParser):
    """The ids, links and loaded files of one page."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag in LOADS and found.get(LOADS[tag]) and found.get("rel") not in ("canonical", "prev", "next"):
            self.loads.append(found[LOADS[tag]])


@pytest.fixture(scope="module")
def site(root, tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=root, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_link_within_the_site_leads_to_a_file_and_an_anchor(site, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(html.unescape(link))
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].ids):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


def test_every_picture_is_there_and_nothing_is_loaded_from_elsewhere(site, pages):
    for path, page in pages.items():
        for target in page.loads:
            assert not urlsplit(target).netloc, f"{path.relative_to(site)} loads {target}"
            if not target.startswith("data:"):
                assert (path.parent / unquote(urlsplit(target).path)).resolve().is_file(), f"{path.relative_to(site)} loads {target}"
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", styles)


def test_code_and_lists_are_laid_out_as_such(site):
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        body = text[text.find("<article") : text.find("</article>")]
        assert not re.search(r"<p>(?:(?!</p>).)*\n(?:[*-]|\d\.) (?:(?!</p>).)*</p>", body, re.DOTALL), (
            f"{path}: a list without an empty line"
        )
        assert "::: " not in body and "<p>| " not in body, path


def test_the_reference_has_what_readers_look_for(pages):
    ids = set().union(*(page.ids for page in pages.values()))
    assert ids >= {
        "stepreward.kernels.advantages.rloo", "stepreward.credit.base.make", "stepreward.credit.base.Method.assign",
        "envs.protocol.Environment.reset", "stepreward.training.main_job.train", "stepreward.config.load_config_file",
    }  # fmt: skip


def test_the_changelog_is_a_page_and_the_search_finds_a_metric(site):
    assert "Keep a Changelog" in (site / "changelog" / "index.html").read_text(encoding="utf-8")
    assert "sampler_gap_nats" in (site / "search" / "search_index.json").read_text(encoding="utf-8")


# --- The hook ---


@pytest.fixture
def rewritten(root, caplog):
    """`rewritten(markdown, page)`: what the hook makes of the text of a page; its warnings are in `caplog`."""
    sys.path.insert(0, str(root / "docs"))
    try:
        import hooks
    finally:
        sys.path.remove(str(root / "docs"))
    caplog.set_level(logging.WARNING)
    return lambda text, page="models.md": hooks.on_page_markdown(text, SimpleNamespace(file=SimpleNamespace(src_uri=page)), None, None)


def test_links_out_of_the_docs_lead_to_the_repository(rewritten, caplog):
    found = rewritten("[a](../launch/cloud/README.md#one-tpu-vm) [b](../configs) [c](runs.md#resuming) `[d](../gone)` [e](https://x.org/a)")
    home = "https://github.com/stepreward/stepreward"
    expected = (
        f"[a]({home}/blob/main/launch/cloud/README.md#one-tpu-vm) [b]({home}/tree/main/configs) [c](runs.md#resuming) `[d](../gone)` "
    )
    assert found == f"{expected}[e](https://x.org/a)" and not caplog.records


def test_pages_of_the_root_link_into_the_site(rewritten):
    assert rewritten("[map](docs/architecture.md)", "contributing.md") == "[map](architecture.md)"
    assert rewritten("[log](../../CHANGELOG.md)", "api/index.md") == "[log](../changelog.md)"


def test_a_link_to_a_missing_file_is_a_warning(rewritten, caplog):
    rewritten("[a](../configs/gone.py)")
    assert "configs/gone.py" in caplog.text


def test_the_module_graph_is_a_table(rewritten):
    found = rewritten("```mermaid\ngraph TD\n    b --> a\n    b --> c\n```\n", "architecture.md")
    assert found.strip() == "| part | imports |\n|---|---|\n| `b` | `a`, `c` |"
