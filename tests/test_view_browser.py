"""The viewer's page in a real browser: Playwright with the machine's Chromium."""

import json
import os
import shutil

import pytest

sync_api = pytest.importorskip("playwright.sync_api")  # extra "browser"
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from test_report import BOARD, episode, step
from test_view import CONFIG, NASTY, append, run_at

from stepreward.report import write_episodes
from stepreward.view import Content, viewing, write_page

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
SLOW_MS = 60_000  # the machine may be busy; a wait ends as soon as what it waits for is there
sync_api.expect.set_options(timeout=SLOW_MS)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is on this machine: apt install chromium")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # The sandbox needs rights that containers, in which tests run as root, do not give.
        flags = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield found
        found.close()


@pytest.fixture
def open_page(browser):
    """`open_page(address)`: the page, ready; at the end, its console must have been silent."""
    pages = []

    def open_page(address, **options):
        page = browser.new_page(**{"viewport": {"width": 1200, "height": 900}} | options)
        page.set_default_timeout(SLOW_MS)
        said = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        pages.append((page, said))
        page.goto(address)
        page.wait_for_selector("body[data-ready]")
        return page

    yield open_page
    for page, said in pages:
        page.close()
        # The server ends before the page: a request that it no longer answers is not the page's fault.
        assert not [text for text in said if "net::ERR_" not in text]


def recorded(task, success, board=BOARD):
    return episode(step(board, exact_advantage=-0.125), step(board, action="left", step_reward=-0.2), task=task, success=success)


@pytest.fixture
def folder(tmp_path):
    return run_at(tmp_path / "runs" / "one", episodes={20: [recorded("room 1", True), recorded("room 2", False)]})


def test_the_page_of_a_run_is_live(open_page, folder):
    with viewing(Content([folder])) as address:
        page = open_page(address)
        success = page.get_by_role("group", name="Success in rollouts")
        assert page.locator("#title").inner_text() == "one" and success.locator("canvas").count() == 1
        assert success.locator(".legend b").inner_text() == "19.0 %"
        append(folder, {"tick": 20, "iteration": 21, "stage": "train", "env_steps": 2000, "wall_s": 40.0, "rollout/success": 0.77})
        sync_api.expect(success.locator(".legend b")).to_have_text("77.0 %")
        write_episodes(folder, 21, 21, [recorded("room 3", True)])
        sync_api.expect(page.locator("#episodes h3")).to_have_text(["room 3 solved"])
        shutil.rmtree(folder)
        sync_api.expect(page.locator("#notices")).to_contain_text("gone")
        assert success.locator(".legend b").inner_text() == "77.0 %"


def test_credit_is_below_each_step_beside_the_exact_advantage(open_page, folder):
    with viewing(Content([folder])) as address:
        first = open_page(address).locator("#episodes article").first.locator(".step").first
        assert first.locator("svg.board").is_visible()
        for title, value in (("step reward", "+0.013"), ("exact advantage", "−0.125")):
            credit = first.locator(f'.credit[title="{title}"]')
            assert credit.is_visible() and value in credit.inner_text()
            assert credit.locator(".bar i").bounding_box()["width"] > 1  # the style attribute is not blocked


def test_filters_and_iterations_choose_the_episodes(open_page, folder):
    write_episodes(folder, 25, 25, [recorded("room 1", False), recorded("shed 9", True, "A red coat is wanted.")])
    with viewing(Content([folder])) as address:
        page = open_page(address)
        shown = lambda *names: sync_api.expect(page.locator("#episodes h3")).to_have_text([f"{name} {how}" for name, how in names])
        shown(("room 1", "failed"), ("shed 9", "solved"))
        page.get_by_label("Outcome").select_option("solved")
        shown(("shed 9", "solved"))
        page.get_by_label("Iteration").select_option("all")
        shown(("shed 9", "solved"), ("room 1", "solved"))
        page.get_by_label("Text of the task").fill("RED coat")
        shown(("shed 9", "solved"))
        assert page.locator("#found").inner_text() == "1 of 4 recorded episodes"
        page.get_by_label("Text of the task").fill("")
        page.get_by_label("Outcome").select_option("")
        page.get_by_label("Iteration").select_option("latest")
        page.get_by_role("button", name="earlier").press("Enter")
        shown(("room 1", "solved"), ("room 2", "failed"))
        assert page.get_by_label("Iteration").input_value() == "20"


def test_runs_are_compared_and_curves_chosen_by_keyboard(open_page, folder):
    other = run_at(folder.parent / "two", count=30, config=CONFIG | {"credit": {"method": "rloo"}})
    append(other, {"tick": 30, "own/metric": 4.0})
    with viewing(Content([folder.parent])) as address:
        page = open_page(address)
        legend = page.get_by_role("group", name="Success in rollouts").locator(".legend li")
        sync_api.expect(legend).to_have_text(["one19.0 %", "two29.0 %"])
        sync_api.expect(page.locator("#episodes .of")).to_have_text(["one", "one", "two"])
        page.get_by_role("checkbox", name="one").press("Space")
        sync_api.expect(legend).to_have_text(["two29.0 %"])
        sync_api.expect(page.locator("#episodes .of")).to_have_text(["two"])
        page.get_by_text("Choose curves").press("Enter")
        page.get_by_label("Find a metric").fill("own")
        page.get_by_label("own/metric").press("Space")
        chart = page.get_by_role("group", name="own/metric")
        assert chart.locator(".legend b").inner_text() == "4"
        plot = page.get_by_role("group", name="Success in rollouts").locator(".plot")
        for key in ("Home", "ArrowRight"):
            plot.press(key)
        sync_api.expect(legend).to_have_text(["two16.0 %"])
        page.get_by_label("Horizontal axis").select_option("env_steps")
        sync_api.expect(legend).to_have_text(["two29.0 %"])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_shared_file_opens_from_disk_on_a_narrow_screen(open_page, folder, tmp_path, scheme):
    write_episodes(folder, 26, 26, [recorded(NASTY, False, NASTY)])
    path = write_page(Content([folder]).snapshot(), tmp_path / "shared.html")
    page = open_page(path.as_uri(), viewport={"width": 360, "height": 800}, color_scheme=scheme)
    assert NASTY in page.locator("#episodes h3").inner_text() and page.locator("#curves canvas").count() >= 3
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert (ink == "rgb(29, 36, 48)") is (scheme == "light")
    page.get_by_text("Tables and config").click()
    page.get_by_text("config.json").click()
    assert page.get_by_text("credit.method").is_visible()
    page.get_by_label("Iteration").select_option("20")
    sync_api.expect(page.locator("#episodes h3")).to_have_count(2)


def test_a_run_without_metrics_has_a_page_that_says_so(open_page, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with viewing(Content([tmp_path])) as address:
        page = open_page(address)
        assert "No iteration has been recorded yet" in page.locator("#headlines").inner_text()
        assert "No episode has been recorded yet" in page.locator("#found").inner_text()
        assert page.locator("#no-curves").is_visible()
        append(tmp_path, {"tick": 1, "iteration": 1, "rollout/success": 0.5})
        sync_api.expect(page.locator("#curves canvas")).to_have_count(1)
