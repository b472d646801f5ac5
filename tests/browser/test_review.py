"""RefVIE's pages in a real browser: samples are looked at, accepted and rejected by mouse and keys."""

import threading

import pytest
import refvie_synthetic

from training.refvie import pipeline
from training.refvie.ledger import Ledger
from training.refvie.pages import report, review

COUNT = 30
LOADED = "() => [...document.images].every(one => one.loading === 'lazy' || (one.complete && one.naturalWidth))"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    refvie_synthetic.fill(folder, COUNT)
    return folder


@pytest.fixture
def page(chromium):
    page = chromium.new_page(viewport={"width": 1500, "height": 1000})
    page.told = []
    page.on("console", lambda message: page.told.append(message.text))
    page.on("pageerror", lambda error: page.told.append(str(error)))
    yield page
    page.close()


@pytest.fixture
def desk(run, page):
    with review.Server(run) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        page.goto(server.url)
        yield page
        server.shutdown()
        thread.join()


def chosen(run):
    with Ledger(run) as book:
        return dict(book.db.execute("SELECT sample, accepted FROM choices"))


def test_samples_are_chosen_by_keys_and_by_mouse(desk, run, screenshots):
    numbers = [int(card.get_attribute("data-number")) for card in desk.locator(".sample").all()]

    def state(place):
        return desk.locator(".sample").nth(place).get_attribute("data-choice")

    for key in ("a", "r", "ArrowRight", "a"):
        before = [state(place) for place in range(4)]
        desk.keyboard.press(key)
        if key != "ArrowRight":
            desk.wait_for_function(
                "before => [...document.querySelectorAll('.sample')].slice(0, 4)"
                ".some((card, place) => card.dataset.choice !== before[place])", arg=before,
            )  # fmt: skip
    assert [state(place) for place in range(4)] == ["true", "false", "", "true"]
    assert chosen(run) == {numbers[0]: 1, numbers[1]: 0, numbers[3]: 1}
    desk.keyboard.press("u")
    desk.wait_for_function("() => document.querySelectorAll('.sample')[3].dataset.choice === ''")
    desk.locator(".sample").nth(2).locator(".reject").click()
    desk.wait_for_function("() => document.querySelectorAll('.sample')[2].dataset.choice === 'false'")
    assert chosen(run) == {numbers[0]: 1, numbers[1]: 0, numbers[2]: 0}
    desk.wait_for_function("() => [...document.images].slice(0, 4).every(one => one.complete && one.naturalWidth)")
    desk.screenshot(path=screenshots / "review.png")
    desk.locator("select[name=verdict]").select_option("rejected by a person")
    desk.wait_for_url("**verdict=rejected*")
    assert [int(card.get_attribute("data-number")) for card in desk.locator(".sample").all()] == numbers[1:3]
    assert desk.told == []


def test_a_sample_plays(desk):
    picture = desk.locator(".sample img[data-moves]").first
    still = picture.get_attribute("src")
    desk.keyboard.press(" ")
    desk.wait_for_function(
        "still => document.querySelector('.sample img[data-moves]').getAttribute('src') !== still", arg=still
    )
    desk.keyboard.press(" ")
    assert desk.told == []


def test_the_report_opens_without_a_server(run, page, tmp_path, screenshots):
    path = tmp_path / "report.html"
    book, given = pipeline.opened(run)
    with book:
        report.report(book, given, path)
    page.goto(path.as_uri())
    assert page.evaluate(LOADED) and page.locator("img").count() > 4
    page.screenshot(path=screenshots / "refvie_report.png")
    assert page.told == []
