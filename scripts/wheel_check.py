"""Does an installed wheel work by itself? Run with the Python that it is installed in.

The libraries that it uses have to be the ones that came with it, with their licences, the doctor
has to find nothing wrong, and a loop, TLS, green sockets and a connection to a PostgreSQL
(DATABASE_URL, if there is one) have to work.
"""

import asyncio
import os
import re
import ssl
import sys
from importlib import metadata
from pathlib import Path

import greenletio
from greenletio import async_, doctor, pg
from greenletio.green import socket, threading

LIBRARIES = re.compile(r"/lib(pq|event|event_core)[-.][^/]*$")


def echo() -> bytes:
    """By green sockets and threads, all on one loop."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(connection.recv(100))

        thread = threading.Thread(target=serve)
        thread.start()
        with socket.create_connection(server.getsockname()) as client:
            client.sendall(b"hello")
            answer = client.recv(100)
        thread.join()
    return answer


def check_libraries() -> None:
    """What is mapped into this process has to come from the wheel."""
    own = Path(greenletio.__file__).resolve().parent
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    found = sorted(path for path in mapped if LIBRARIES.search(path))
    foreign = [path for path in found if own.parent not in Path(path).resolve().parents]
    if foreign:
        sys.exit(f"not from the wheel: {', '.join(foreign)}")
    if not found:
        sys.exit("libpq is not loaded")
    print("libraries:", *(Path(path).name for path in found))


def check_licences() -> None:
    """Ours, and what the libraries that came with the wheel ask to be told of."""
    files = metadata.files("greenletio") or []
    there = {file.name.partition("-")[0] for file in files if "licenses" in file.parts}
    if missing := {"LICENSE", "libevent", "openssl", "postgresql"} - there:
        sys.exit(f"no licence of: {', '.join(sorted(missing))}")


def main() -> None:
    if greenletio.run(async_(echo)()) != b"hello":
        sys.exit("the echo is wrong")
    if asyncio.run(async_(echo)()) != b"hello":
        sys.exit("the echo on asyncio's loop is wrong")
    url = os.environ.get("DATABASE_URL")
    findings = doctor.examine(url)
    for line in findings:
        print(f"{line.status:4} {line.name}: {line.value}")
    if any(line.status == "bad" for line in findings):
        sys.exit("the doctor says that something does not work")
    if url is None:
        try:
            pg.connect("host=127.0.0.1 port=1 sslmode=require", timeout=5)
        except pg.OperationalError as error:
            print("libpq:", " ".join(str(error).split()))
        else:
            sys.exit("a port that nobody listens at was connected to")
    check_libraries()
    check_licences()
    print(f"{greenletio.__name__} {greenletio.__version__} works, beside {ssl.OPENSSL_VERSION}")


main()
