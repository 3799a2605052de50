"""Clients of SMTP, FTP and DNS; the servers are aiosmtpd, pyftpdlib and dnslib, in threads."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from fix_missing import missing


class Mailbox:
    """A handler of aiosmtpd's that keeps what comes."""

    def __init__(self) -> None:
        self.mails: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.mails.append((envelope.mail_from, envelope.rcpt_tos, envelope.content))
        return "250 OK"


@pytest.fixture
def smtp_server(authority: trustme.CA) -> Iterator[tuple[int, Mailbox]]:
    try:
        from aiosmtpd.smtp import SMTP
    except ImportError:
        missing("aiosmtpd is not installed")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    mailbox, loop, stop = Mailbox(), asyncio.new_event_loop(), asyncio.Event()
    listener = socket.create_server(("127.0.0.1", 0), backlog=200)

    async def serve() -> None:
        def protocol() -> Any:
            return SMTP(mailbox, hostname="localhost", tls_context=context, loop=loop)

        server = await loop.create_server(protocol, sock=listener, backlog=200)
        await stop.wait()
        server.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    yield listener.getsockname()[1], mailbox
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


def test_smtplib(client: Any, smtp_server: Any, ca_file: str, silent: Any) -> None:
    port, mailbox = smtp_server
    client(
        "",
        """
        with patch_blocking():
            import smtplib, ssl
            from email.message import EmailMessage

        def send(i):
            mail = EmailMessage()
            mail["From"], mail["To"], mail["Subject"] = f"a{i}@a.org", "b@b.org", str(i)
            mail.set_content("x" * 70 + "\\n" * 1000)
            with smtplib.SMTP("localhost", port, timeout=30) as server:
                server.starttls(context=ssl.create_default_context(cafile=ca_file))
                meet()
                return server.send_message(mail)
        assert together(send) == [{}] * MANY
        # What the time limit of the greeting becomes in smtplib, green or not.
        late = smtplib.SMTPServerDisconnected
        timing_out(lambda i: smtplib.SMTP(*silent, timeout=0.2), late)
        """,
        port=port,
        ca_file=ca_file,
        silent=silent,
    )
    assert sorted(sender for sender, _, _ in mailbox.mails) == sorted(
        f"a{i}@a.org" for i in range(50)
    )


@pytest.fixture
def ftp_port(tmp_path: Path) -> Iterator[int]:
    """Of a server with the user "user", whose folder is empty."""
    try:
        from pyftpdlib.authorizers import DummyAuthorizer
        from pyftpdlib.handlers import FTPHandler
        from pyftpdlib.ioloop import IOLoop
        from pyftpdlib.servers import FTPServer
    except ImportError:
        missing("pyftpdlib is not installed")

    class Handler(FTPHandler):  # type: ignore[misc]
        authorizer = DummyAuthorizer()
        use_sendfile = False

    Handler.authorizer.add_user("user", "password", str(tmp_path), perm="elradfmw")
    ioloop, end = IOLoop(), threading.Event()
    server = FTPServer(("127.0.0.1", 0), Handler, ioloop=ioloop, backlog=200)

    def serve() -> None:
        while not end.is_set():
            ioloop.loop(timeout=0.05, blocking=False)
        server.close_all()

    thread = threading.Thread(target=serve)
    thread.start()
    yield server.address[1]
    end.set()
    thread.join()


def test_ftplib(client: Any, ftp_port: int, silent: Any) -> None:
    client(
        "",
        """
        with patch_blocking():
            import ftplib, io

        def work(i):
            body, parts = b"%d" % i * 50_000, []
            with ftplib.FTP(timeout=30) as server:
                server.connect("127.0.0.1", port)
                server.login("user", "password")
                meet()
                server.storbinary(f"STOR {i}", io.BytesIO(body))
                server.retrbinary(f"RETR {i}", parts.append)
                assert str(i) in server.nlst()
                server.delete(str(i))
            return b"".join(parts) == body
        assert together(work) == [True] * MANY

        def connect(i):
            ftplib.FTP(timeout=0.2).connect(*silent)
        timing_out(connect, TimeoutError)
        """,
        port=ftp_port,
        silent=silent,
    )


@pytest.fixture
def dns_ports() -> Iterator[tuple[int, int]]:
    """Over UDP and over TCP: where hostN.example has the address 10.0.0.N."""
    try:
        from dnslib import QTYPE, RR, A
        from dnslib.server import BaseResolver, DNSLogger, DNSServer
    except ImportError:
        missing("dnslib is not installed")

    class Resolver(BaseResolver):  # type: ignore[misc]
        def resolve(self, request: Any, handler: Any) -> Any:
            reply, name = request.reply(), request.q.qname
            number = str(name).partition(".")[0].removeprefix("host")
            reply.add_answer(RR(name, QTYPE.A, rdata=A(f"10.0.0.{number}"), ttl=60))
            return reply

    quiet = DNSLogger(logf=lambda line: None)
    servers = [
        DNSServer(Resolver(), address="127.0.0.1", port=0, tcp=tcp, logger=quiet)
        for tcp in (False, True)
    ]
    for server in servers:
        server.start_thread()
    yield tuple(server.server.server_address[1] for server in servers)  # type: ignore[misc]
    for server in servers:
        server.stop()
        server.server.server_close()
        server.thread.join()


def test_dnspython(client: Any, dns_ports: Any, silent: Any, silent_udp: Any) -> None:
    client(
        "dns",
        """
        with patch_blocking():
            import dns.message, dns.query, dns.resolver

        udp_port, tcp_port = dns_ports
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], udp_port

        def ask(i):
            answer = resolver.resolve(f"host{i}.example.", "A", lifetime=30)
            question = dns.message.make_query(f"host{i}.example.", "A")
            over_tcp = dns.query.tcp(question, "127.0.0.1", timeout=30, port=tcp_port)
            assert over_tcp.answer[0][0].address == f"10.0.0.{i}"
            return answer[0].address
        assert together(ask) == [f"10.0.0.{i}" for i in range(MANY)]

        def unanswered(i):
            if i % 2:
                dns.query.tcp(question, silent[0], timeout=0.2, port=silent[1])
            late.resolve("host1.example.", "A", lifetime=0.2)
        question = dns.message.make_query("host1.example.", "A")
        late = dns.resolver.Resolver(configure=False)
        late.nameservers, late.port = [silent_udp[0]], silent_udp[1]
        timing_out(unanswered, dns.exception.Timeout)
        """,
        dns_ports=dns_ports,
        silent=silent,
        silent_udp=silent_udp,
    )
