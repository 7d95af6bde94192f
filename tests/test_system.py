"""Threads and devices."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ptri.errors import UserError
from ptri.system import choose_device, one_thread


def in_new_thread(action):
    """What the action returns in a Python thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(action).result()


def test_one_thread_is_given_back_by_python_threads_that_overlap():
    """Each used to leave behind what the other had set: one thread, for every later thread."""
    before = torch.get_num_threads()
    entered, leave = threading.Event(), threading.Event()

    def stay():
        with one_thread():
            entered.set()
            leave.wait(10)

    def overlap():
        with one_thread():
            with one_thread():
                pass
            leave.set()
            first.join()
            return torch.get_num_threads()

    torch.set_num_threads(3)
    try:
        first = threading.Thread(target=stay)
        first.start()
        entered.wait(10)
        assert in_new_thread(overlap) == 1  # also after the other one has left, and from within
        assert in_new_thread(torch.get_num_threads) == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_device_that_is_none_or_not_there():
    for name in ("gpu", "cuda:99"):
        with pytest.raises(UserError, match=rf"run\.device: '{name}'"):
            choose_device(name)
