"""Cores are shared between the chapters and the processes of each, and none is given twice."""

from hypothesis import given
from hypothesis import strategies as st

from parameter_ordering.paper.book.execute import shares


@given(cores=st.integers(1, 256), chapters=st.integers(1, 30))
def test_no_core_is_given_twice(cores, chapters):
    side_by_side, each = shares(cores, chapters)
    assert 1 <= side_by_side <= chapters
    assert each >= 1
    assert side_by_side * each <= cores


@given(cores=st.integers(1, 256))
def test_one_chapter_has_all_cores(cores):
    assert shares(cores, 1) == (1, cores)


@given(cores=st.integers(1, 256))
def test_most_cores_are_used(cores):
    side_by_side, each = shares(cores, 30)
    assert 2 * side_by_side * each > cores
