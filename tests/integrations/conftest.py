"""The trainers are optional; what the book shows of them is what runs here."""

import json
from pathlib import Path

import pytest

CHAPTER = Path(__file__).parents[2] / "chapters/own_model.ipynb"


@pytest.fixture
def recipe():
    """The lines that the chapter on one's own model shows under a tab of this name."""

    def find(tab):
        cells = json.loads(CHAPTER.read_text(encoding="utf-8"))["cells"]
        text = next(t for c in cells if "tab-set" in (t := "".join(c["source"])))
        part = text.split(f"{{tab-item}} {tab}\n", 1)[1].split("```python\n", 1)[1]
        return part.split("```", 1)[0]

    return find
