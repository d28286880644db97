"""Joins the book's chapters to Sphinx, so that ``jupyter-book build`` runs what has to run.

Two things could make Sphinx show what is old. It does not know what an executed notebook depends
on: we execute on ``env-get-outdated``, and name every page that was read from other executed
notebooks than there are now. And a build that is killed between reading and writing leaves pages
that look up to date: a mark stands in the build folder from before anything is read until all is
written, and a build that finds one starts from no pages at all.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from myst_nb.ext.glue.utils import PendingGlueReference
from sphinx.application import Sphinx
from sphinx.util import logging

from parameter_ordering.paper.book.chapters import Chapter
from parameter_ordering.paper.book.check import banner, problems
from parameter_ordering.paper.book.execute import execute, take_turn
from parameter_ordering.paper.book.glance import AtAGlance
from parameter_ordering.paper.book.pages import page
from parameter_ordering.paper.book.settings import PAPER, BookError, Settings
from parameter_ordering.paper.book.site import Site
from parameter_ordering.paper.store.files import sha256, write_text

_log = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the handlers."""
    build = _Build(app)
    app.add_config_value("parameter_ordering_profile", PAPER, "env")
    app.connect("config-inited", build.begin, priority=100)
    app.connect("env-get-outdated", build.outdated)
    app.connect("env-before-read-docs", build.mark)
    app.connect("source-read", build.read)
    app.connect("doctree-read", build.was_read)
    app.connect("env-purge-doc", build.forget)
    app.connect("env-updated", build.renamed)
    app.connect("build-finished", build.end)
    Site(app, build.settings)
    AtAGlance.settings = build.settings
    app.add_directive("at-a-glance", AtAGlance)
    return {
        "env_version": int(_own_sources()[:15], 16),  # pages made by other sources are read again
        "parallel_read_safe": False,
        "parallel_write_safe": True,
    }


class _Build:
    """The handlers of one build."""

    def __init__(self, app: Sphinx) -> None:
        self.settings = Settings(Path(app.srcdir), build=Path(app.outdir).parent)
        self._titles: dict[str, str] = {}
        self._mark = Path(app.outdir).parent / f".unfinished-{Path(app.outdir).name}"

    def begin(self, app: Sphinx, config: Any) -> None:
        """Wait for our turn, look at the settings, remove what a killed build has left."""
        self._turn = take_turn(self.settings, _log.info)
        self.settings.check()
        if self._mark.exists():
            for folder in (app.outdir, app.doctreedir, Path(app.outdir).parent / "jupyter_execute"):
                shutil.rmtree(folder, ignore_errors=True)
            Path(app.outdir).mkdir(parents=True)
        config.parameter_ordering_profile = self.settings.profile
        if self.settings.profile != PAPER:
            config.html_theme_options["announcement"] = banner(self.settings.profile)

    def outdated(self, app: Sphinx, env: Any, added: set, changed: set, removed: set) -> list[str]:
        """Execute what has to be; name the pages that were read from something else."""
        self._titles = _titles(env)
        chapters = [Chapter(self.settings, name) for name in self.settings.notebooks]
        states = [(chapter, chapter.state()) for chapter in chapters]
        stale = [chapter for chapter, state in states if state.runs]
        if stale:
            _log.info("")
            for chapter, state in states:
                if state.runs:
                    _log.info("%s is %s: %s", chapter.docname, state.name, state.why)
            execute(self.settings, stale, say=_log.info)
        for name in removed:
            _html(app, name).unlink(missing_ok=True)
        return [
            name
            for name, stamps in _stamps(env).items()
            if stamps != {other: self._stamp(other) for other in stamps}
        ]

    def mark(self, app: Sphinx, env: Any, docnames: list[str]) -> None:
        """From here on the pages are in flux."""
        write_text(self._mark, "")

    def read(self, app: Sphinx, docname: str, source: list[str]) -> None:
        """Give Sphinx the executed notebook in place of the committed one."""
        _glue(app, docname).unlink(missing_ok=True)
        if app.env.doc2path(docname, base=False).endswith(".ipynb"):
            if docname not in self.settings.notebooks:
                raise BookError(f"{docname} is not in _toc.yml")
            source[0] = nbformat.writes(page(Chapter(self.settings, docname)))

    def was_read(self, app: Sphinx, doctree: nodes.document) -> None:
        """Remember which executed notebooks the page shows: its own and those it glues from."""
        docname = app.env.docname
        names = {docname, *(glue.refdoc for glue in doctree.findall(PendingGlueReference))}
        if docname == app.config.root_doc:  # it sums up all
            names.update(self.settings.notebooks)
        _stamps(app.env)[docname] = {name: self._stamp(name) for name in names}

    def forget(self, app: Sphinx, env: Any, docname: str) -> None:
        """The page is to be read again, or is gone."""
        _stamps(env).pop(docname, None)
        _glue(app, docname).unlink(missing_ok=True)

    def renamed(self, app: Sphinx, env: Any) -> list[str]:
        """Write all pages when the titles changed that stand in the side bar of each."""
        return list(env.all_docs) if _titles(env) != self._titles else []

    def end(self, app: Sphinx, error: Exception | None) -> None:
        """Look at the pages, and take the mark away; a build that failed has to fail again."""
        if error is None and app.builder.name == "html":
            found = list(problems(self.settings, Path(app.outdir)))
            if found:
                raise BookError("\n".join(["something is wrong with the pages", *found]))
        if error is None and not (app._warncount and (app.warningiserror or app.keep_going)):
            self._mark.unlink(missing_ok=True)
        self._turn.release()

    def _stamp(self, docname: str) -> str:
        path = Chapter(self.settings, docname).executed
        return sha256(path) if path.is_file() else ""


def _own_sources() -> str:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _stamps(env: Any) -> dict[str, dict[str, str]]:
    if not hasattr(env, "parameter_ordering_stamps"):
        env.parameter_ordering_stamps = {}
    return env.parameter_ordering_stamps


def _titles(env: Any) -> dict[str, str]:
    return {name: title.astext() for name, title in env.titles.items()}


def _glue(app: Sphinx, docname: str) -> Path:
    return Path(app.outdir).parent / "jupyter_execute" / f"{docname}.glue.json"


def _html(app: Sphinx, docname: str) -> Path:
    return Path(app.outdir) / f"{docname}.html"
