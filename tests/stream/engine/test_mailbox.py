"""One slot, newest wins, nothing lost uncounted."""

from __future__ import annotations

import asyncio
import threading

from stream.engine.mailbox import Mailbox, Outbox


def test_the_newest_item_wins_and_the_rest_is_counted():
    box = Mailbox()
    assert [box.put(item) for item in "abc"] == [None, "a", "b"]
    assert (box.take(), box.take(), box.dropped) == ("c", None, 2)


def test_only_the_judged_item_is_cleared():
    box = Mailbox()
    box.put("old")
    box.put("new")
    assert box.clear(lambda item: item == "old") is None
    assert box.clear() == "new"
    assert box.clear() is None
    assert box.dropped == 2


def test_every_item_is_taken_or_counted_whatever_the_threads_do():
    box, taken, count = Mailbox(), [], 2000

    def take():
        while (item := box.take(timeout_s=5)) != count:
            taken.append(item)

    taker = threading.Thread(target=take)
    taker.start()
    for item in range(count):
        box.put(item)
    while box.peek() is not None:  # the last word must not overwrite a frame
        pass
    box.put(count)
    taker.join(10)
    assert len(taken) + box.dropped == count
    assert taken == sorted(taken)


async def test_a_coroutine_waits_for_what_another_thread_puts():
    box = Outbox(asyncio.get_running_loop())
    assert await box.get(timeout_s=0.01) is None
    thread = threading.Timer(0.05, lambda: [box.put("old"), box.put("new")])
    thread.start()
    assert await box.get(timeout_s=10) in ("old", "new")
    thread.join()
    box.put("next")
    assert await box.get() == "next"
