"""A real browser on the built pages: ``python -m parameter_ordering.paper.book.browser``.

It is the system's Chromium, driven by playwright. It puts a picture of every page into
``_build/look``, in the light and the dark theme and on a phone, for a human eye.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parameter_ordering.paper.book.settings import Settings

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDE, PHONE = (1280, 900), (390, 844)
VIEWS = {"light": (WIDE, "light"), "dark": (WIDE, "dark"), "phone": (PHONE, "light")}
_WAIT = "document.fonts.ready.then(() => new Promise(requestAnimationFrame))"


def chromium() -> str | None:
    """The browser's path, or nothing if there is none: ``$CHROMIUM``, or a usual name."""
    named = os.environ.get("CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium without a window.

    Raises:
        RuntimeError: there is no browser, or no playwright to drive it.
    """
    path = chromium()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        raise RuntimeError(
            "this needs a browser: install chromium and pip install 'parameter-ordering[web]'"
        )
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=flags)
        try:
            yield opened
        finally:
            opened.close()


def view(opened: Any, size: tuple[int, int], theme: str) -> Any:
    """A window of this size, in which pages have the theme "light" or "dark"."""
    width, height = size
    context = opened.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
    chosen = f"localStorage.mode = localStorage.theme = {theme!r}"
    context.add_init_script(f"if (location.protocol !== 'about:') {chosen}")
    return context


def show(context: Any, page: Path) -> Any:
    """A page in a window, with its fonts and pictures there."""
    tab = context.new_page()
    tab.goto(page.as_uri(), wait_until="load")
    tab.eval_on_selector_all("img[loading=lazy]", "all => all.forEach(e => e.loading = 'eager')")
    tab.wait_for_load_state("networkidle")
    tab.evaluate(_WAIT)
    return tab


def look(settings: Settings, html: Path, folder: Path) -> None:
    """A picture of every page in every view."""
    folder.mkdir(parents=True, exist_ok=True)
    with browser() as opened:
        for name, (size, theme) in VIEWS.items():
            context = view(opened, size, theme)
            for docname in settings.docnames:
                tab = show(context, html / f"{docname}.html")
                target = folder / f"{docname.replace('/', '-')}-{name}.png"
                tab.screenshot(path=str(target), full_page=True)
                tab.close()
            context.close()
    print(f"Pictures of {len(settings.docnames)} pages are in {folder}")


def main() -> None:
    """Take the pictures."""
    settings = Settings(Path.cwd())
    look(settings, settings.build / "html", settings.build / "look")


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:
        sys.exit(str(error))
