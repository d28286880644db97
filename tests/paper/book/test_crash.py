"""After a build that was killed, the next one gives what an undisturbed one gives.

It keeps every finished result. Five kills in ``make test``; fifty with ``pytest -m slow``. The
moments are drawn from a seed, which ``KILL_SEED`` sets.
"""

import os
import random
import re
import time

import pytest


def shown(book):
    """What a reader sees, but for dates and durations."""
    pages = {}
    for path in sorted((book.root / "_build/html").rglob("*.html")):
        text = re.sub(r"\d{4}-\d\d-\d\dT[\d:+]+", "DATE", path.read_text())
        text = re.sub(r"commit <code.*?</code>", "COMMIT", text)
        text = re.sub(r"\.css(\?v=\w+)?", ".css", text)
        text = re.sub(r"_downloads/\w+/", "_downloads/", text)
        pages[path.name] = re.sub(r"in \d+\.\d s", "in SECONDS", text)
    return pages


def kill_and_compare(book, kills):
    expected = shown(book)
    (result,) = book.root.glob("_build/results/*.nc")
    written = result.stat().st_mtime_ns
    began = time.monotonic()
    book.edit("lib/style.py", '"""Draws."""', '"""Draws, 0."""')
    book.edit("lib/science.py", '"""Computes."""', '"""Computes, 0."""')
    assert book.build()[0] == 0
    undisturbed = time.monotonic() - began
    rng = random.Random(int(os.environ.get("KILL_SEED", "0")))
    for number in range(kills):
        # Every second build has chapters to execute; the others find what the last one has left.
        if number % 2 == 0:
            book.edit("lib/style.py", f"Draws, {number}.", f"Draws, {number + 2}.")
            book.edit("lib/science.py", f"Computes, {number}.", f"Computes, {number + 2}.")
        build = book.start()
        time.sleep(rng.uniform(0.1, 1.0) * undisturbed)
        build.kill()
        build.join()
    status, output = book.build()
    assert status == 0, output
    assert shown(book) == expected
    assert result.stat().st_mtime_ns == written
    assert not list(book.root.glob("_build/**/*.part"))
    assert not list(book.root.glob("_build/.unfinished*"))
    before = {path: path.stat().st_mtime_ns for path in book.root.glob("_build/html/**/*.html")}
    assert book.build()[0] == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_five_kills(built):
    kill_and_compare(built, 5)


@pytest.mark.slow
def test_fifty_kills(built):
    kill_and_compare(built, 50)
