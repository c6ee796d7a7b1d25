"""Finding the helper programs."""

import os

import pytest

from leakcheck._bin import helper


def test_a_packaged_helper_is_found_and_may_be_run() -> None:
    assert os.access(helper("mkleak"), os.X_OK)


def test_a_helper_that_is_not_there_is_named_with_what_to_do() -> None:
    with pytest.raises(FileNotFoundError, match=r"find helper program .*/_bin/nosuch: not built; run"):
        helper("nosuch")
