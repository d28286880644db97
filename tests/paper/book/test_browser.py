"""The built pages in a real browser.

What is tested: axe-core finds nothing on any page, light and dark, wide and on a phone; no script
fails and nothing is fetched from elsewhere; no page scrolls sideways, no formula is cut; pictures
say what they show; nothing jumps; the interactive figures and the table of cases answer to the
keyboard.

They look at ``_build/html``, which ``make book`` has made, and need Chromium.
"""

from pathlib import Path

import pytest

from parameter_ordering.paper.book.browser import PHONE, WIDE, browser, chromium, show, view
from parameter_ordering.paper.book.settings import Settings

ROOT = Path(__file__).parents[3]
SETTINGS = Settings(ROOT, profile="paper")
HTML = SETTINGS.build / "html"
BUILT = (HTML / "index.html").is_file()
VIEWS = [(WIDE, "light"), (WIDE, "dark"), (PHONE, "light"), (PHONE, "dark")]
CUT = """() => [...document.querySelectorAll('.math')]
    .filter(e => !e.querySelector('.katex')
        || e.matches('div') && e.scrollWidth > e.clientWidth + 1)
    .map(e => e.textContent)"""
SHIFTS = """() => new Promise(done => {
    let sum = 0;
    new PerformanceObserver(list => list.getEntries().forEach(e => sum += e.value))
        .observe({type: 'layout-shift', buffered: true});
    setTimeout(() => done(sum), 300);
})"""

pytestmark = [
    pytest.mark.skipif(not BUILT, reason="there is no book in _build/html; run make book"),
    pytest.mark.skipif(chromium() is None, reason="there is no Chromium"),
]


@pytest.fixture(scope="module")
def windows():
    pytest.importorskip("playwright")
    with browser() as opened:
        yield {each: view(opened, *each) for each in VIEWS}


@pytest.fixture(scope="module")
def axe():
    return pytest.importorskip("axe_playwright_python.sync_playwright").Axe()


@pytest.mark.parametrize("docname", SETTINGS.docnames if BUILT else [])
def test_a_page_in_every_view(windows, axe, docname):
    for (size, theme), window in windows.items():
        wrong = []
        window.on("weberror", lambda error, found=wrong: found.append(str(error.error)))
        window.on("requestfailed", lambda request, found=wrong: found.append(request.url))
        window.on(
            "request", lambda r, found=wrong: r.url.startswith("http") and found.append(r.url)
        )
        tab = show(window, HTML / f"{docname}.html")
        where = f"{docname}, {size[0]} pixels, {theme}"
        assert not wrong, where
        assert tab.evaluate("document.documentElement.scrollWidth") <= size[0], where
        assert not tab.evaluate(CUT), where
        assert tab.evaluate(SHIFTS) <= 0.05, where
        alts = tab.eval_on_selector_all("article img", "all => all.map(e => e.alt)")
        assert not [alt for alt in alts if len(alt) < 40], where
        violations = axe.run(tab).response["violations"]
        found = [(v["id"], v["nodes"][0]["html"][:160]) for v in violations]
        assert not found, where
        tab.close()


def test_look_inside_answers_to_the_keyboard(windows):
    tab = show(windows[WIDE, "light"], HTML / "chapters/experiments/mnist.html")
    words = tab.locator(".look-words")
    before = words.inner_text()
    tab.focus(".look input[type=range]")
    tab.keyboard.press("ArrowRight")
    assert words.inner_text() != before
    tab.keyboard.press("End")
    assert words.inner_text().startswith("100 %")
    tab.select_option(".look select[name=order]", index=1)
    assert "random" in words.inner_text()
    tab.close()


def test_the_cases_sort_and_filter(windows):
    tab = show(windows[WIDE, "light"], HTML / "chapters/claims.html")
    tab.focus(".fold:has(table[data-sorts]) > summary")
    tab.keyboard.press("Enter")
    rows = tab.locator("table[data-sorts] tbody tr:visible")
    before = rows.count()
    tab.fill(".filters [name=words]", "boston")
    assert 0 < rows.count() < before
    tab.focus("table[data-sorts] th:nth-child(6) button")
    tab.keyboard.press("Enter")
    cells = tab.eval_on_selector_all(
        "table[data-sorts] tbody tr:not([hidden]) td:nth-child(6)",
        "all => all.map(e => +e.dataset.by)",
    )
    assert cells == sorted(cells)
    tab.close()
