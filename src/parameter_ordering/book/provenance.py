"""Under each figure, folded away: where it comes from, and how to draw it again."""

from parameter_ordering.book.chapters import Chapter


def folded(chapter: Chapter, record: dict) -> str:
    """MyST for the fold under a figure."""
    return f"```{{dropdown}} How this figure was made\n{record['date']}\n```"
