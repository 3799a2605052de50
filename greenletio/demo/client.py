"""The load: HTTP clients in a process of their own, the same for every mode.

Each client is a thread with a kept-alive connection that takes the next search
from the common list, so the server always has that many requests at hand. Each JSON
line that is read is a load to make; what is written are JSON lines.
"""

import json
import sys
import threading
import zlib
from http.client import HTTPConnection
from time import perf_counter, sleep
from typing import Any
from urllib.parse import urlencode

__all__ = ("main",)

ARRIVAL_S = 0.001


def tell(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


class Load:
    def __init__(self, port: int, searches: list[str], clients: int) -> None:
        self.port = port
        self.pending = iter(enumerate(searches))
        self.clients = clients
        self.lock = threading.Lock()
        self.samples: list[tuple[float, float]] = []
        self.hits = 0
        self.digest = 0
        self.failures: list[str] = []
        self.start = 0.0

    def run(self) -> dict[str, Any]:
        # All connections stand before the first request is sent.
        connections = [
            HTTPConnection("127.0.0.1", self.port, timeout=120) for _ in range(self.clients)
        ]
        for connection in connections:
            connection.connect()
        threads = [threading.Thread(target=self._client, args=(each,)) for each in connections]
        self.start = perf_counter()
        for thread in threads:
            thread.start()
            # People do not come all in the same millisecond.
            sleep(ARRIVAL_S)
        for thread in threads:
            while thread.is_alive():
                thread.join(0.1)
                tell(event="answered", requests=len(self.samples))
        return {
            "seconds": max((at for at, _ in self.samples), default=0.0) - self.start,
            "samples": sorted(self.samples),
            "hits": self.hits,
            "digest": self.digest,
            "failures": self.failures,
        }

    def _client(self, connection: HTTPConnection) -> None:
        try:
            while not self.failures:
                with self.lock:
                    number, words = next(self.pending, (-1, ""))
                if number < 0:
                    break
                self._ask(connection, number, words)
        except Exception as error:
            self.failures.append(f"{type(error).__name__}: {error}")
        finally:
            connection.close()

    def _ask(self, connection: HTTPConnection, number: int, words: str) -> None:
        began = perf_counter()
        connection.request("GET", "/search?" + urlencode({"q": words}))
        response = connection.getresponse()
        body = response.read()
        ended = perf_counter()
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status} for {words!r}: {body[:200]!r}")
        hits = len(json.loads(body))
        with self.lock:
            self.samples.append((ended, ended - began))
            self.hits += hits
            # The order of the answers differs from run to run, their sum must not.
            self.digest += zlib.crc32(body, number)


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        tell(event="result", **Load(order["port"], order["searches"], order["clients"]).run())


if __name__ == "__main__":
    main()
