"""The event loop of `asyncio` here: it waits for timers only, since there are no sockets, threads or processes."""

import asyncio
import time
from asyncio import base_events, events


class TimerEventLoop(base_events.BaseEventLoop):
    """An event loop that sleeps until its next timer."""

    def __init__(self):
        super().__init__()
        self._selector = self

    def select(self, timeout=None):
        """Sleeps until the next timer. Nothing else can wake the loop."""
        if timeout is None:
            raise RuntimeError('the event loop waits for ever: no timer is set, and there is nothing else to wait for')
        if timeout > 0:
            time.sleep(timeout)
        return ()

    def _process_events(self, event_list):
        pass

    def _write_to_self(self):
        pass


class TimerEventLoopPolicy(events._BaseDefaultEventLoopPolicy):
    """The policy that makes such loops."""

    _loop_factory = TimerEventLoop


def install():
    """Makes this the event loop of `asyncio`."""
    asyncio.EventLoop = asyncio.SelectorEventLoop = TimerEventLoop
    events._event_loop_policy = TimerEventLoopPolicy()
