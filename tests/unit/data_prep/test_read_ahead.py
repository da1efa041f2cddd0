# SPDX-License-Identifier: Apache-2.0
"""Items in order, errors in their turn, and no thread left behind."""

import threading

import pytest

from data_prep.read_ahead import read_ahead


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


@pytest.mark.parametrize("depth", [1, 3])
def test_items_come_in_order(depth):
    assert list(read_ahead(iter(range(100)), depth=depth)) == list(range(100))
    assert threads() == []


def test_no_more_than_the_depth_is_made_ahead():
    made = []
    taken = threading.Event()

    def count():
        for i in range(50):
            made.append(i)
            if i == 4:
                taken.set()
            yield i

    items = read_ahead(count(), depth=3)
    assert next(items) == 0
    assert taken.wait(10)  # 0 is taken, 1 to 3 are ready, 4 waits for its place
    assert made == [0, 1, 2, 3, 4]
    items.close()
    assert threads() == []


def test_error_comes_after_the_items_before_it():
    def failing():
        yield 1
        raise ValueError("broken")

    items = read_ahead(failing(), depth=3)
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)
    assert threads() == []
