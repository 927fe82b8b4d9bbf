"""Several processes that work as one."""

import pytest
import torch

from tests.several import together
from wagle import ranks
from wagle.errors import WagleError


def _told():
    told = ranks.first(lambda: f"from {ranks.rank()}")
    squares = ranks.deal(range(5), lambda numbers: [(n * n, ranks.rank()) for n in numbers])
    total = ranks.add_up(torch.tensor([1.0 + ranks.rank()]))
    return told, squares, float(total), ranks.everyone(ranks.rank())


def test_all_processes_know_the_same():
    expected = ("from 0", [(0, 0), (1, 1), (4, 2), (9, 0), (16, 1)], 6.0, [0, 1, 2])
    assert together(3, _told) == [expected] * 3


def _fail():
    def work():
        raise WagleError("there is no such file")

    try:
        ranks.first(work)
    except WagleError as error:
        return str(error), ranks.is_first_to_fail()


def test_where_the_first_fails_all_do_and_one_says_so():
    outcomes = together(2, _fail)
    assert [message for message, _ in outcomes] == ["there is no such file"] * 2
    assert sorted(speaks for _, speaks in outcomes) == [False, True]


def test_a_process_alone_does_it_all_by_itself():
    assert ranks.deal([1, 2], lambda numbers: [n + 1 for n in numbers]) == [2, 3]
    assert ranks.first(lambda: "told") == "told"
    assert (ranks.rank(), ranks.size(), ranks.is_first_to_fail()) == (0, 1, True)


def test_a_process_that_shares_a_device_of_one_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(WagleError, match="mps, where one process runs alone"):
        ranks.join(torch.device("mps"))
