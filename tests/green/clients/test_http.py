"""HTTP clients. The server is the standard library's, with a thread for each connection."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import trustme

LOOPS = {"http": "asyncio", "https": "greenletio"}


class Together(BaseHTTPRequestHandler):
    """Answers a GET only when as many have come as `parties` says, so that they run at once."""

    protocol_version = "HTTP/1.1"
    parties: threading.Barrier

    def do_GET(self) -> None:
        self.parties.wait(30)
        self._answer(self.path.encode() * 1000)

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])).upper())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 200


@pytest.fixture(params=["http", "https"])
def server(
    request: pytest.FixtureRequest, authority: trustme.CA, ca_file: str
) -> Iterator[dict[str, Any]]:
    """What a script needs to know of a server that answers fifty GETs at a time."""

    class Handler(Together):
        parties = threading.Barrier(50)

    with Server(("127.0.0.1", 0), Handler) as server:
        if request.param == "https":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("localhost").configure_cert(context)
            # The handshake is made by the handler's thread, not by the one that accepts.
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield {
            "url": f"{request.param}://localhost:{server.server_port}",
            "ca_file": ca_file,
            "loop": LOOPS[request.param],
        }
        server.shutdown()
        thread.join()


def test_requests(client: Any, server: Any, silent: Any) -> None:
    client(
        "requests",
        """
        with patch_blocking():
            import requests

        session = requests.Session()
        session.verify = ca_file
        session.trust_env = False
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=MANY, pool_block=True)
        session.mount(url, adapter)

        def get(i):
            response = session.get(f"{url}/{i}", timeout=30)
            assert response.text == f"/{i}" * 1000
            return session.post(url, data=b"x" * 50_000, timeout=30).content
        assert together(get) == [b"X" * 50_000] * MANY

        scheme = url.partition(":")[0]
        timing_out(
            lambda i: session.get(f"{scheme}://localhost:{silent[1]}", timeout=0.2),
            requests.Timeout,
        )
        """,
        **server,
        silent=silent,
    )


def test_urllib3(client: Any, server: Any, silent: Any) -> None:
    client(
        "urllib3",
        """
        with patch_blocking():
            import urllib3

        pool = urllib3.PoolManager(maxsize=MANY, block=True, ca_certs=ca_file)

        def get(i):
            response = pool.request("GET", f"{url}/{i}", timeout=30.0)
            assert response.data == f"/{i}".encode() * 1000
            answer = pool.request("POST", url, body=b"x" * 50_000, preload_content=False)
            return b"".join(answer.stream(4096))
        assert together(get) == [b"X" * 50_000] * MANY

        few = urllib3.PoolManager(maxsize=2, block=True, ca_certs=ca_file)
        posts = together(lambda i: few.request("POST", url, body=b"few").data)
        assert posts == [b"FEW"] * MANY

        scheme = url.partition(":")[0]
        late = urllib3.exceptions.TimeoutError
        timing_out(
            lambda i: pool.request(
                "GET", f"{scheme}://localhost:{silent[1]}", timeout=0.2, retries=False
            ),
            (late, urllib3.exceptions.SSLError) if scheme == "https" else late,
        )
        """,
        **server,
        silent=silent,
    )


def test_http_client_and_urllib(client: Any, server: Any, silent: Any) -> None:
    client(
        "",
        """
        with patch_blocking():
            import http.client
            import ssl
            from urllib.request import Request, urlopen

        scheme, _, host = url.partition("://")
        context = ssl.create_default_context(cafile=ca_file) if scheme == "https" else None

        def connection(host, timeout):
            if context:
                return http.client.HTTPSConnection(host, timeout=timeout, context=context)
            return http.client.HTTPConnection(host, timeout=timeout)

        def get(i):
            one = connection(host, 30)
            one.request("GET", f"/{i}")
            assert one.getresponse().read() == f"/{i}".encode() * 1000
            one.request("POST", "/", body=b"x" * 50_000)  # on the same connection
            assert one.getresponse().read() == b"X" * 50_000
            one.close()
            with urlopen(f"{url}/{i}", timeout=30, context=context) as response:
                assert response.read() == f"/{i}".encode() * 1000
            with urlopen(Request(url, data=b"x" * 50_000), context=context) as response:
                return response.read()
        assert together(get) == [b"X" * 50_000] * MANY

        def ask_the_silent(i):
            one = connection(f"localhost:{silent[1]}", 0.2)
            one.request("GET", "/")  # TLS waits for the handshake here
            one.getresponse()
        timing_out(ask_the_silent, TimeoutError)
        """,
        **server,
        silent=silent,
    )


def test_xmlrpc_both_sides_green(client: Any) -> None:
    client(
        "",
        """
        with patch_blocking():
            import threading, time
            from socketserver import ThreadingMixIn
            from xmlrpc.client import ServerProxy
            from xmlrpc.server import SimpleXMLRPCServer

        class Server(ThreadingMixIn, SimpleXMLRPCServer):
            request_queue_size = 50

        def main(_):
            barrier = threading.Barrier(8)
            def double(n):
                barrier.wait(30)
                return 2 * n
            with Server(("127.0.0.1", 0), logRequests=False) as server:
                server.register_function(double)
                serving = threading.Thread(target=server.serve_forever, args=(0.01,))
                serving.start()
                answers = []
                def ask(i):
                    with ServerProxy("http://127.0.0.1:%d" % server.server_address[1]) as proxy:
                        answers.append(proxy.double(i))
                threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                server.shutdown()
                serving.join()
                return sorted(answers)
        import threading as real
        assert together(main, 1) == [[0, 2, 4, 6, 8, 10, 12, 14]]
        assert real.active_count() == 1
        """,
    )
