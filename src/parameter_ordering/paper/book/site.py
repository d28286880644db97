"""What makes pages a site: doors to the repository, heads that are found, notebooks to take away.

``repository: url`` in ``_config.yml`` is the one setting. While it is empty no button promises
anything; set, every page has buttons, an address of its own, and the site has a map.
"""

import re
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from sphinx.application import Sphinx

from parameter_ordering.paper.book import head
from parameter_ordering.paper.book.chapters import Chapter, read
from parameter_ordering.paper.book.download import download
from parameter_ordering.paper.book.polish import polished
from parameter_ordering.paper.book.settings import Settings
from parameter_ordering.paper.store.files import write_text
from parameter_ordering.paper.store.origin import origin

_HOSTED = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+?)(?:\.git)?/?")
_BUTTONS = ("use_repository_button", "use_source_button", "use_issues_button")
_SCRIPTS = {"data-look": "look.js", "data-sorts": "sorts.js", "data-stages": "stages.js"}
_FORMULA = re.compile(r'class="math\b')
_LAUNCH = {
    "notebook_interface": "jupyterlab",
    "binderhub_url": "https://mybinder.org",
    "colab_url": "https://colab.research.google.com",
}


class Site:
    """The handlers that finish the pages of a book."""

    def __init__(self, app: Sphinx, settings: Settings) -> None:
        self.settings = settings
        app.connect("config-inited", self.open_doors, priority=200)
        app.connect("html-page-context", self.finish, priority=900)
        app.connect("build-finished", self.add_files, priority=400)

    def open_doors(self, app: Sphinx, config: Any) -> None:
        """Buttons and addresses, if there is a repository to lead to."""
        options = config.html_theme_options
        url = (options.get("repository_url") or "").removesuffix("/")
        options["repository_url"] = url
        options.update(dict.fromkeys(_BUTTONS, bool(url)))
        options["launch_buttons"] = dict(_LAUNCH) if url else {}
        config.html_baseurl = config.html_baseurl or address(url)

    def finish(
        self,
        app: Sphinx,
        pagename: str,
        templatename: str,
        context: dict[str, Any],
        doctree: nodes.document | None,
    ) -> None:
        """Give a page its head, and its text the last touch."""
        if "body" in context:
            context["body"] = polished(context["body"], lambda name: self._image(app, name))
        about = head.description(doctree)
        plain = re.sub(r"<[^>]+>", "", context.get("title") or app.config.html_title)
        where = self._origin
        context["metatags"] = context.get("metatags", "") + head.tags(
            app.config.html_title,
            plain,
            about,
            str(where["date"])[:10],
            str(where["version"]),
            app.config.html_baseurl,
            f"{pagename}.html",
        )
        if _FORMULA.search(context.get("body", "")):
            app.add_js_file("math.js")
        for mark, script in _SCRIPTS.items():
            if mark in context.get("body", ""):  # on this page, and on no other
                app.add_js_file(script, loading_method="defer")

    def add_files(self, app: Sphinx, error: Exception | None) -> None:
        """Notebooks that run by themselves in place of bare ones, and the map of the site."""
        if error is not None or app.builder.name != "html":
            return
        values = {name: read(Chapter(self.settings, name).executed) for name in self._ran()}
        for name in self.settings.notebooks:
            target = Path(app.outdir) / "_sources" / f"{name}.ipynb"
            if target.is_file():
                url = app.config.html_theme_options["repository_url"]
                notebook = download(Chapter(self.settings, name), values, url)
                write_text(target, nbformat.writes(notebook))
        if app.config.html_baseurl:
            pages = [f"{name}.html" for name in self.settings.docnames]
            text = head.sitemap(app.config.html_baseurl, pages)
            write_text(Path(app.outdir) / "sitemap.xml", text)

    def _ran(self) -> list[str]:
        names = self.settings.notebooks
        return [name for name in names if Chapter(self.settings, name).executed.is_file()]

    def _image(self, app: Sphinx, name: str) -> Path | None:
        """Where an image lies before it is copied; one for phones goes to its place at once."""
        wide = name.removesuffix("-narrow.svg")
        if wide == name:
            images: Mapping[str, str] = app.builder.images
            found = (source for source, copy in images.items() if copy == name)
            return next((Path(app.srcdir) / source for source in found), None)
        kept = self.settings.build / "figures" / "narrow" / f"{wide}.svg"
        if not kept.is_file():
            return None
        folder = Path(app.outdir) / app.builder.imagedir
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(kept, folder / name))

    @cached_property
    def _origin(self) -> Mapping[str, Any]:
        return origin()


def address(repository: str) -> str:
    """Where GitHub publishes the pages of a repository, or nothing if it is elsewhere.

    >>> address("https://github.com/someone/parameter-ordering")
    'https://someone.github.io/parameter-ordering/'
    """
    found = _HOSTED.fullmatch(repository)
    return f"https://{found[1].lower()}.github.io/{found[2]}/" if found else ""
