"""The site as one file that reads the same in ten years: ``python -m ...paper.book.archive``.

A zip of all pages, offline and from disk, with ``SHA256SUMS`` over every file in it, the manifest
``codecheck.yml``, and the PDF if it was made. The same site packs to the same bytes.
"""

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

from parameter_ordering.paper.book.settings import Settings

_WHEN = (1980, 1, 1, 0, 0, 0)  # the first that a zip knows
_LEFT_OUT = {".buildinfo", ".buildinfo.bak"}


def pack(settings: Settings, target: Path) -> int:
    """Write the archive; gives the number of files in it."""
    files = dict(sorted(_files(settings)))
    sums = "".join(f"{_sha256(path)}  {name}\n" for name, path in files.items())
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("book/SHA256SUMS", _WHEN), sums)
        for name, path in files.items():
            about = zipfile.ZipInfo(f"book/{name}", _WHEN)
            about.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(about, path.read_bytes())
    return len(files)


def _files(settings: Settings) -> Iterator[tuple[str, Path]]:
    html = settings.build / "html"
    for path in html.rglob("*"):
        if path.is_file() and path.name not in _LEFT_OUT and path.suffix != ".map":
            yield path.relative_to(html).as_posix(), path
    for path in (settings.build / "book.pdf", settings.root / "codecheck.yml"):
        if path.is_file():
            yield path.name, path
    for path in (settings.build / "figures").rglob("*.*"):
        yield f"figures/{path.relative_to(settings.build / 'figures').as_posix()}", path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Make ``_build/book.zip``."""
    settings = Settings(Path.cwd())
    target = settings.build / "book.zip"
    count = pack(settings, target)
    print(f"{target}: {count} files, {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
