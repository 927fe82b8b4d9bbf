"""Work in threads: in order, a few items ahead, one core each."""

from __future__ import annotations

import pytest
import torch

from wagle.optim.threads import ordered_map

COUNTS = [1, 2, 3]


@pytest.mark.parametrize("count", COUNTS)
def test_results_come_in_order_and_items_are_taken_as_they_are_needed(count, threads):
    threads(count)
    taken = []

    def items():
        for number in range(50):
            taken.append(number)
            yield number

    for index, result in enumerate(ordered_map(lambda number: number**2, items())):
        assert result == index**2
        assert len(taken) <= index + count + 1
    assert len(taken) == 50


@pytest.mark.parametrize("count", COUNTS)
def test_threads_use_one_core_each_and_record_no_gradients(count, threads):
    threads(count)
    seen = list(ordered_map(lambda _: (torch.get_num_threads(), torch.is_grad_enabled()), range(6)))
    assert set(seen) == {(1, False)}
    assert torch.get_num_threads() == count
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("count", COUNTS)
def test_one_map_may_feed_another(count, threads):
    threads(count)
    inner = ordered_map(lambda number: number + 1, range(40))
    assert list(ordered_map(lambda number: 2 * number, inner)) == list(range(2, 82, 2))


@pytest.mark.parametrize("count", COUNTS)
def test_a_failure_reaches_the_caller(count, threads):
    threads(count)
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(lambda number: 1 // (number - 3), range(40)))
