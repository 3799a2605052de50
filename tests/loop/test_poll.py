"""What the loop watches for add_reader and its kin."""

import asyncio
import contextlib
import os
import socket

import greenletio


def watched(fd):
    """Whether an epoll of this process has the fd number in its set."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{name}") as info:
            if any(line.split()[:2] == ["tfd:", str(fd)] for line in info):
                return True
    return False


def test_what_is_removed_is_not_watched_even_if_a_duplicate_lives_on():
    """Taken out only at the next poll, when the fd is closed, it would stay in the kernel's set as
    long as a duplicate (a forked child's, say) is open, and be reported for ever."""

    async def main():
        loop = asyncio.get_running_loop()
        a, b = socket.socketpair()
        with b:
            fd = a.fileno()
            duplicate = os.dup(fd)
            loop.add_writer(a, lambda: None)
            await asyncio.sleep(0)
            assert watched(fd)
            loop.remove_writer(a)
            a.close()
            assert not watched(fd)
            os.close(duplicate)

    greenletio.run(main())
