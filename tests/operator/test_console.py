"""The console in a real browser: Debian's Chromium, driven by Playwright."""

import os
import re
import shutil
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from nereid import Nereid, parameter, torchscript
from playwright.sync_api import expect, sync_playwright
from traffic import infer

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
PATIENCE_MS = 15_000


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.fail("there is no Chromium: install the package chromium, or set CHROMIUM to the browser's path")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@contextmanager
def opened(browser, server, **options):
    """The console in a fresh window; no script may fail, and nothing but the server may be asked."""
    options.setdefault("viewport", {"width": 1280, "height": 800})
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    mistakes, asked = [], []
    page.on("pageerror", lambda error: mistakes.append(str(error)))
    page.on("console", lambda said: mistakes.append(said.text) if "Content Security Policy" in said.text else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"http://{server.http}/")
    yield page
    context.close()
    assert mistakes == []
    assert [url for url in asked if not url.startswith(f"http://{server.http}/")] == []


@contextmanager
def traffic(server, model):
    """Requests, one after the other, for as long as the block runs."""
    ended = threading.Event()

    def run():
        while not ended.is_set():
            infer(server, model, rows=2)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def row(page, model, version="1"):
    """A version's line of the table."""
    return page.locator("tr.version").filter(has=page.get_by_role("button", name=model, exact=True)).filter(
        has=page.locator("td.number", has_text=version))


def test_models_and_versions_are_shown_with_state_and_reason(browser, server):
    with opened(browser, server) as page:
        expect(page.locator("#readiness")).to_have_text("Not ready")
        expect(page.locator("#version")).to_have_text("Nereid 0.1.0")
        expect(page.locator("#count")).to_have_text("3 of 4 versions ready")
        expect(row(page, "pair", "3").locator("td.status")).to_have_text("Ready")
        expect(row(page, "broken").locator("td.status")).to_contain_text("Failed")
        expect(row(page, "broken").locator("td.status")).to_contain_text("model.pt")
        page.get_by_label("Show models whose name has").fill("PAI")
        expect(page.locator("tr.version")).to_have_count(2)


def test_traffic_shows_as_throughput_latency_and_batches(browser, server):
    with traffic(server, "echo"), opened(browser, server) as page:
        line = row(page, "echo")
        for figure in ("rate", "p50", "p99", "queue"):
            expect(line.locator(f"td.{figure}")).to_have_text(re.compile("[1-9]"))
        expect(line.locator("td.batch")).to_have_text("2")
        expect(row(page, "pair").locator("td.rate")).to_have_text("0")
        expect(page.locator('[data-tile="rate"] .figure')).not_to_have_text("0")
        line.get_by_role("button", name="echo", exact=True).click()
        details = page.locator("tr.details")
        expect(details).to_contain_text("2 rows")
        expect(details).to_contain_text("100\u00a0%")


def test_a_model_is_unloaded_after_a_question_and_loaded_again(browser, server):
    with opened(browser, server) as page:
        unload = row(page, "echo").get_by_role("button", name="Unload echo")
        unload.click()
        page.get_by_role("dialog").get_by_role("button", name="Keep it").click()
        expect(row(page, "echo").locator("td.status")).to_have_text("Ready")
        unload.click()
        page.get_by_role("dialog").get_by_role("button", name="Unload").click()
        expect(page.locator("#notice")).to_have_text("echo: unloaded")
        expect(row(page, "echo").locator("td.status")).to_have_text("Unloaded")
        assert infer(server, "echo") != 200
        row(page, "echo").get_by_role("button", name="Load echo").click()
        expect(row(page, "echo").locator("td.status")).to_have_text("Ready")
        assert infer(server, "echo") == 200


def test_why_a_load_failed_is_said(browser, server):
    with opened(browser, server) as page:
        row(page, "broken").get_by_role("button", name="Load broken").click()
        expect(page.locator("#notice")).to_contain_text("broken: load failed")


@pytest.mark.parametrize("system, chosen", [("light", "dark"), ("dark", "light")])
def test_the_theme_is_the_systems_until_one_is_chosen(browser, server, system, chosen):
    lightness = "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]) > 127 ? 'light' : 'dark'"
    with opened(browser, server, color_scheme=system) as page:
        assert page.evaluate(lightness) == system
        while page.locator("#theme").text_content() != f"Theme: {chosen}":
            page.locator("#theme").click()
        assert page.evaluate(lightness) == chosen
        page.reload()
        assert page.evaluate(lightness) == chosen


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_the_page_is_as_wide_as_the_screen(browser, server, width):
    with opened(browser, server, viewport={"width": width, "height": 800}) as page:
        expect(row(page, "echo")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_models_are_not_to_be_loaded_where_the_start_decides(browser, repository):
    with Nereid(repository) as running, opened(browser, running) as page:
        expect(row(page, "echo").locator("td.status")).to_have_text("Ready")
        expect(page.locator("footer")).to_contain_text("at the start only")
        assert page.get_by_role("button", name="Unload echo").count() == 0


def test_where_each_model_is_in_memory_is_shown(browser, tmp_path):
    weights = 1 << 20
    config = (
        'input { name: "INPUT0" data_type: TYPE_FP32 dims: [ 1, 4 ] } output { name: "y" data_type: TYPE_FP32 dims: [ 1, 4 ] }'
        + parameter("memory.residency", "on_demand") + parameter("torch.optimize", "off")
    )
    source = "def forward(self, x):\n    return x + self.w[0]\n"
    for name, value in (("one", 1.0), ("two", 2.0)):
        torchscript(tmp_path / "models", name, source, config, {"w": [value] * weights})
    (tmp_path / "spill").mkdir()
    flags = [f"--memory-limit=host:{7 << 20}", f"--memory-spill-directory={tmp_path / 'spill'}"]
    with Nereid(tmp_path / "models", *flags) as running, opened(browser, running) as page:
        expect(row(page, "one").locator("td.status")).to_have_text("On demandnot loaded")
        assert infer(running, "one") == 200
        expect(row(page, "one").locator("td.status")).to_have_text("Ready")
        expect(row(page, "one").locator("td.memory")).to_have_text("4.00\u00a0MiB")
        row(page, "one").get_by_role("button", name="one", exact=True).click()
        expect(page.locator("tr.details")).to_contain_text("Memorycpu4.00\u00a0MiB")
        assert infer(running, "two") == 200
        expect(row(page, "two").locator("td.status")).to_have_text("Ready")
        expect(row(page, "one").locator("td.status")).to_have_text("Paged outothers needed its memory")
        tile = page.locator('[data-tile="devices"] .detail')
        expect(tile).to_have_text(re.compile("^cpu: .* of 7.00\u00a0MiB, 1 paged out \\(4.00\u00a0MiB in files\\)$"))
        assert infer(running, "one") == 200
        expect(row(page, "two").locator("td.status")).to_have_text("Paged outothers needed its memory")


def test_a_server_that_stops_is_said_to_be_silent(browser, repository):
    with Nereid(repository, "--model-control-mode=explicit", "--load-model=echo") as running, opened(browser, running) as page:
        expect(page.locator("#readiness")).to_have_text("Ready")
        running.stop()
        expect(page.locator("#readiness")).to_have_text("No answer")
        expect(page.locator("#notice")).to_contain_text("No answer from the server")


def test_without_metrics_the_statistics_are_shown(browser, repository):
    flags = ["--model-control-mode=explicit", "--load-model=echo", "--allow-metrics=false"]
    with Nereid(repository, *flags) as running, traffic(running, "echo"), opened(browser, running) as page:
        expect(row(page, "echo").locator("td.batch")).to_have_text("2")
        expect(row(page, "echo").locator("td.p50")).to_have_text("\u2013")
        expect(page.locator("footer")).to_contain_text("Metrics are switched off")


def test_restricted_parts_are_shown_once_their_value_is_given(browser, repository):
    flags = ["--model-control-mode=explicit", "--load-model=echo", "--http-restricted-api=statistics,model-repository:gate=open sesame"]
    with Nereid(repository, *flags) as running, traffic(running, "echo"), opened(browser, running) as page:
        expect(page.locator("#access")).to_contain_text("restricted")
        expect(page.locator("#access-header")).to_have_text("gate")
        value = page.get_by_label("Value of gate")
        value.fill("wrong")
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#access-why")).to_have_text("The value was not accepted.")
        value.fill("open sesame")
        page.get_by_role("button", name="Use it").click()
        expect(row(page, "echo").locator("td.batch")).to_have_text("2")
        expect(page.locator("#access")).to_be_hidden()
        assert page.evaluate("[JSON.stringify(localStorage), document.cookie]") == ["{}", ""]
        page.reload()
        expect(row(page, "echo").locator("td.status")).to_have_text("Ready")


def test_the_console_can_be_switched_off(repository):
    with Nereid(repository, "--allow-console=false") as running:
        for path in ("", "console/status", "console/metrics", "console/console.js"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"http://{running.http}/{path}", timeout=10)
            assert refused.value.code == 404
