"""Work on several things at once gives what it gives one by one."""

import os

import pytest

from stages import beside
from stages.params import UserError


def half(number: int) -> int:
    if number % 2:
        raise UserError(f"{number} is odd")
    return number // 2


def process(_: int) -> int:
    return os.getpid()


def test_results_stand_in_the_order_of_the_things() -> None:
    assert beside.each(half, list(range(0, 40, 2)), "halves") == list(range(20))
    assert beside.each(half, [8], "halves") == [4]


def test_it_is_done_in_other_processes() -> None:
    assert os.getpid() not in beside.each(process, [1, 2, 3], "processes")


def test_an_error_is_raised_as_it_is() -> None:
    with pytest.raises(UserError, match="3 is odd"):
        beside.each(half, [2, 3, 4], "halves")
