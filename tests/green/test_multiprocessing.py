"""multiprocessing, green: processes of every kind are started, talked to and waited for."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAM = """
import asyncio
import sys

import greenletio
from greenletio import async_, patch_blocking


def double(x):
    return x * 2


def answer(queue, event, lock):
    with lock:
        queue.put(42)
        event.set()


def work(method):
    with patch_blocking():
        import multiprocessing
    import multiprocessing as standard

    assert multiprocessing.current_process() is standard.current_process()
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        assert pool.map(double, range(5)) == [0, 2, 4, 6, 8]
        assert pool.apply_async(double, (4,)).get(30) == 8
    queue, event, lock = context.Queue(), context.Event(), context.Lock()
    process = context.Process(target=answer, args=(queue, event, lock))
    lock.acquire()
    process.start()
    process.join(0.05)
    assert process.is_alive() and isinstance(process, standard.process.BaseProcess)
    lock.release()
    assert queue.get(timeout=30) == 42 and event.wait(30)
    process.join()
    assert process.exitcode == 0
    with context.Manager() as manager:
        shared = manager.dict(a=1)
        assert dict(shared) == {"a": 1}
    slow = context.Process(target=event.wait)
    event.clear()
    slow.start()
    slow.terminate()
    slow.join()
    assert slow.exitcode == -15 and standard.active_children() == []


async def main():
    steps = 0

    async def tick():
        nonlocal steps
        while True:
            await asyncio.sleep(0)
            steps += 1

    ticking = asyncio.create_task(tick())
    await async_(work)(sys.argv[1])
    ticking.cancel()
    assert steps > 1000


if __name__ == "__main__":
    greenletio.run(main())
    print("done")
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes(tmp_path: Path, method: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    done = subprocess.run(
        [sys.executable, str(program), method],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
