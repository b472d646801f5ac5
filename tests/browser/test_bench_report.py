"""A benchmark's report in a real browser: clips play together, cards are chosen and ordered."""

import bench_runs
import pytest

from training.bench.folder import DONE, Verdict
from training.bench.pages import report


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    audit = {"passed": True, "agreement": 0.97}
    runs = [
        bench_runs.fill(base / name, name, better=better, audit=audit) for name, better in (("mine", 0), ("yours", 1))
    ]
    return report.write(runs, base / "page")


@pytest.fixture
def page(chromium, path):
    page = chromium.new_page(viewport={"width": 1400, "height": 1000})
    page.told = []
    page.on("console", lambda message: page.told.append(message.text))
    page.on("pageerror", lambda error: page.told.append(str(error)))
    page.on("request", lambda request: request.url.startswith("file:") or page.told.append(request.url))
    page.goto(path.as_uri())
    yield page
    assert page.told == []
    page.close()


def test_the_clips_of_a_card_play_together(page, screenshots):
    card = page.locator(".clip").filter(has=page.locator("video")).first
    card.locator(".play").click()
    page.wait_for_function(
        "card => [...card.querySelectorAll('video')].every(film => !film.paused && film.currentTime > 0.2)",
        arg=card.element_handle(),
    )
    times = card.evaluate("card => [...card.querySelectorAll('video')].map(film => film.currentTime)")
    assert len(times) == 3 and max(times) - min(times) < 0.3
    page.screenshot(path=screenshots / "bench_report.png", full_page=True)
    card.locator(".play").click()
    assert card.evaluate("card => [...card.querySelectorAll('video')].every(film => film.paused)")


def test_cards_are_chosen_and_ordered(page):
    def values():
        return [float(card.get_attribute("data-value")) for card in page.locator(".clip:visible").all()]

    assert values() == sorted(values()) and len(values()) == 14
    page.locator("#order").select_option("best")
    assert values() == sorted(values(), reverse=True)
    page.locator("#category").select_option("local_add")
    assert {card.get_attribute("data-category") for card in page.locator(".clip:visible").all()} == {"local_add"}
    assert len(values()) == 2
    page.locator("#all").click()
    page.wait_for_function("[...document.querySelectorAll('.clip:not([hidden]) video')].some(film => !film.paused)")
    assert page.evaluate("[...document.querySelectorAll('.clip[hidden] video')].every(film => film.paused)")


def test_what_has_no_score_comes_last_in_either_order(chromium, tmp_path):
    bare, partly = (bench_runs.fill(tmp_path / name, name, count=6, fails=(), judges=()) for name in ("bare", "partly"))
    partly.note_judge("j-1", {"model": "j", "identity": "x", "settings": {}, "audit": None})
    for number in (4, 2, 3):
        item = partly.items[number]
        scores = dict.fromkeys(item.criteria, float(number))
        partly.note_verdicts("j-1", [Verdict(item.id, 0, DONE, scores, scores)])
    page = chromium.new_page()
    page.goto(report.write([bare, partly], tmp_path / "page").as_uri())

    def order():
        return [card.get_attribute("data-name") for card in page.locator(".clip").all()]

    assert order() == ["i2", "i3", "i4", "i0", "i1", "i5"]
    page.locator("#order").select_option("best")
    assert order() == ["i4", "i3", "i2", "i0", "i1", "i5"]
    page.locator("#order").select_option("worst")
    assert order() == ["i2", "i3", "i4", "i0", "i1", "i5"]
    page.close()
