"""What TLS has agreed on, as `tls` says it, and servers that are known by their key."""

import asyncio
import base64
import contextlib
import datetime
import hashlib
import socket
import ssl
import struct
import subprocess
import sys
import threading

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fix_postgres import ask as ask_server

from greenletio import _pg, async_, pg
from greenletio.pg import _tls, aio, errors

LIMIT = 30  # against a hang, not a measure
SSL_REQUEST = struct.pack(">II", 8, 80877103)
ENCRYPTED = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
OTHER = "sha256/" + "A" * 43 + "="


pytestmark = pytest.mark.usefixtures("libpq_with_tls")


@pytest.fixture
def options(system_server):
    return {
        "host": "localhost",
        "port": system_server.port,
        "database": "postgres",
        "user": "by_password",
        "password": "password",
        "timeout": LIMIT,
    }


@pytest.fixture
def certificate(system_server):
    """The server's, by a library of its own."""
    return x509.load_pem_x509_certificate((system_server.data_dir / "server.crt").read_bytes())


def key_of(certificate):
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def pin_of(certificate):
    digest = hashlib.sha256(key_of(certificate)).digest()
    return f"sha256/{base64.b64encode(digest).decode()}"


def test_the_facts(options, certificate, system_server):
    with pg.connect(**options, sslmode="require") as c:
        tls = c.tls
    assert tls.version == "TLSv1.3"
    assert tls.cipher.startswith("TLS_")
    assert tls.alpn in (None, "postgresql")
    shown = tls.certificate
    assert shown.der == certificate.public_bytes(Encoding.DER)
    assert shown.pem == certificate.public_bytes(Encoding.PEM).decode()
    assert shown.public_key == key_of(certificate)
    assert shown.public_key_sha256 == hashlib.sha256(key_of(certificate)).hexdigest()
    assert shown.pin == pin_of(certificate)
    assert shown.subject == certificate.subject.rfc4514_string()
    assert shown.issuer == certificate.issuer.rfc4514_string()
    assert shown.names == (("DNS", "localhost"),)
    for mine, theirs in (
        (shown.not_before, certificate.not_valid_before_utc),
        (shown.not_after, certificate.not_valid_after_utc),
    ):
        assert mine == theirs
        assert mine.utcoffset() == datetime.timedelta(0)
    assert c.tls is None  # closed
    with pg.connect(**options, sslmode="disable") as c:
        assert c.tls is None
    with pg.connect(**options, sslmode="require", ssl_max_protocol_version="TLSv1.2") as c:
        assert c.tls.version == "TLSv1.2"
    assert ssl.DER_cert_to_PEM_cert(shown.der) == shown.pem


def test_names_of_all_kinds(options, system_server):
    issued = system_server.authority.issue_cert(
        "localhost", "127.0.0.1", "::1", "someone@example.org", common_name="Zoë, Ltd."
    )

    async def main():
        async with aio.create_pool(**options, ssl="require", min_size=1) as pool:
            async with pool.acquire() as c:
                return c.tls

    with system_server.certificate(issued):
        shown = asyncio.run(main()).certificate
    assert sorted(shown.names) == [
        ("DNS", "localhost"),
        ("IP Address", "127.0.0.1"),
        ("IP Address", "::1"),
        ("email", "someone@example.org"),
    ]
    assert "CN=Zoë\\, Ltd." in shown.subject


def test_other_copies_of_openssl(options, certificate, tmp_path):
    """One that other packages have brought along is no matter; one that takes libpq's place is."""
    script = tmp_path / "script.py"
    script.write_text(
        "import ctypes, sys\n"
        "import psycopg, psycopg2\n"
        "from greenletio import pg\n"
        "c = pg.connect(sys.argv[1])\n"
        "print(c.tls.certificate.pin)\n"
        "if sys.argv[2:]:\n"
        "    ctypes.CDLL(sys.argv[2], ctypes.RTLD_GLOBAL)\n"
        "    for look in lambda: c.tls, lambda: pg.connect(sys.argv[1], tls_pin=sys.argv[3]):\n"
        "        try:\n"
        "            print(look())\n"
        "        except pg.NotSupportedError as exc:\n"
        "            print(exc)\n"
        "c.close()\n"
    )
    dsn = (
        f"host=localhost port={options['port']} dbname=postgres user=by_password "
        "password=password sslmode=require"
    )
    source, library = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text('const char *SSL_get_version(void *ssl) { return "TLSv1.3"; }\n')
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    run = [sys.executable, script, dsn]
    done = subprocess.run(run, capture_output=True, text=True, timeout=LIMIT)
    assert (done.stdout, done.stderr) == (f"{pin_of(certificate)}\n", "")
    done = subprocess.run([*run, library, OTHER], capture_output=True, text=True, timeout=LIMIT)
    assert done.stderr == ""
    first, *others = done.stdout.splitlines()
    assert first == pin_of(certificate)
    assert len(others) == 2
    for line in others:
        assert "another one is loaded for the whole process" in line


def test_the_right_key(ask, options, certificate):
    pin = pin_of(certificate)
    for pins in (pin, [OTHER, pin], pin.replace("sha256/", "sha256//")):
        assert ask(
            "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", **options, tls_pin=pins
        )
    assert ask("SELECT 1", **options, tls_pin=pin, sslmode="require") == 1
    for wrong in (OTHER, [OTHER]):
        with pytest.raises(errors.TlsPinMismatch, match="none of tls_pin") as caught:
            ask("SELECT 1", **options, tls_pin=wrong)
        assert str(caught.value).startswith(f"the server's key is {pin}, which")
        assert isinstance(caught.value, errors.CannotConnect)


@pytest.mark.parametrize("first", [0, 0xFF])
def test_a_pin_may_begin_with_a_slash_itself(first):
    """As that of every 64th key does."""
    digest = bytes([first]) * 32
    text = base64.b64encode(digest).decode()
    assert _tls._pins([f"sha256/{text}", f"sha256//{text}"]) == [digest, digest]
    for wrong in (f"sha256///{text}", f"sha256/{text[1:]}"):
        with pytest.raises(ValueError, match="tls_pin"):
            _tls._pins(wrong)


def test_a_key_that_changes(options, certificate, system_server):
    """A pool that knows the old key makes no new connections; the ones it has go on."""
    pin = pin_of(certificate)
    with pg.Pool(kwargs={**options, "tls_pin": pin}, min_size=1, max_size=2) as pool:
        with pool.connection() as first:
            assert first.tls.certificate.pin == pin
            with system_server.certificate(system_server.authority.issue_cert("localhost")):
                with pytest.raises(pg.PoolTimeout, match="none of tls_pin"):
                    pool.getconn(timeout=2)
                assert first.execute("SELECT 1").fetchone() == (1,)

    async def main():
        async with aio.create_pool(**options, tls_pin=[OTHER], min_size=0) as pool:
            with pytest.raises(errors.TlsPinMismatch):
                await pool.fetch("SELECT 1")

    asyncio.run(main())


def test_each_connection_of_a_replication_session(options, certificate, system_server):
    pins = [OTHER, pin_of(certificate)]
    with pytest.raises(errors.TlsPinMismatch, match="none of tls_pin"):
        pg.connect_replication(**options, tls_pin=OTHER)
    with pytest.raises(errors.TlsPinMismatch, match="none of tls_pin"):
        asyncio.run(aio.connect_replication(**options, tls_pin=[OTHER]))

    async def identify():
        async with await aio.connect_replication(**options, tls_pin=pins) as replication:
            return await replication.identify_system()

    ask_server(system_server.url, "ALTER ROLE by_password REPLICATION")
    try:
        assert asyncio.run(identify()).database == "postgres"
        with pg.connect_replication(**options, tls_pin=iter(pins)) as replication:
            assert replication.identify_system().database == "postgres"
            session = replication._session
            with system_server.certificate(system_server.authority.issue_cert("localhost")):
                session.raw.terminate()
                with pytest.raises(errors.TlsPinMismatch):
                    replication.identify_system()
                with pytest.raises(errors.TlsPinMismatch):  # for the types of a stream
                    session.connecting(_pg.Connection(), None).run()
    finally:
        ask_server(system_server.url, "ALTER ROLE by_password NOREPLICATION")


def test_what_cannot_be_pinned(ask, options, certificate, system_server, monkeypatch, tmp_path):
    for wrong in ("", "sha256/abc", "md5/" + "A" * 43 + "=", "sha256/" + "A" * 42, [], [None]):
        with pytest.raises(ValueError, match="tls_pin"):
            ask("SELECT 1", **options, tls_pin=wrong)
    pin = pin_of(certificate)
    for mode in ("disable", "allow", "prefer"):
        with pytest.raises(errors.ProgrammingError, match=f"sslmode={mode}"):
            ask("SELECT 1", **options, tls_pin=pin, sslmode=mode)
    monkeypatch.setenv("PGSSLMODE", "disable")
    assert ask(ENCRYPTED, **options, tls_pin=pin)
    monkeypatch.delenv("PGSSLMODE")
    service = tmp_path / "services"
    service.write_text("[strict]\nsslmode=verify-full\nsslrootcert=/no/such/file\n")
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    with pytest.raises(errors.OperationalError, match="/no/such/file"):  # not weakened
        ask("SELECT 1", **options, tls_pin=pin, service="strict")
    local = {**options, "host": str(system_server.socket_dir)}
    assert ask("SELECT 1", **local) == 1
    with pytest.raises(errors.TlsPinMismatch, match="no TLS"):
        ask("SELECT 1", **local, tls_pin=pin)


class Recorder:
    """A server by hand, with a key of its own, that asks for the password in clear and keeps all
    that it is told, outside TLS and inside."""

    def __init__(self, authority):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(self.context)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.outside, self.inside = [], []
        self.served = 0
        self.handshakes = 0
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            with sock, contextlib.suppress(OSError):
                sock.settimeout(LIMIT)
                self.talk(sock)
            self.served += 1

    def talk(self, sock):
        first = sock.recv(8, socket.MSG_WAITALL)
        self.outside.append(first)
        if first != SSL_REQUEST:
            return
        sock.sendall(b"S")
        with self.context.wrap_socket(sock, server_side=True) as tls:
            self.handshakes += 1
            asked = False
            while data := tls.recv(65536):
                self.inside.append(data)
                if not asked:
                    tls.sendall(b"R" + struct.pack(">II", 8, 3))  # the password, in clear
                    asked = True
                else:
                    return

    def wait(self, count):
        while self.served < count:
            threading.Event().wait(0.001)


@pytest.fixture
def recorder():
    recorder = Recorder(trustme.CA())
    yield recorder
    recorder.listener.close()


def test_the_password_never_leaves(ask, options, recorder, certificate):
    options = {**options, "port": recorder.port, "password": "a-secret", "user": "my-name"}
    # Without a pin this server gets all it wants.
    with pytest.raises(errors.OperationalError):
        ask("SELECT 1", **options, sslmode="require")
    recorder.wait(1)
    assert any(b"my-name" in data for data in recorder.inside)
    assert any(b"a-secret" in data for data in recorder.inside)
    recorder.inside.clear()
    recorder.outside.clear()
    # With one it gets a handshake, and no byte after that.
    for count in range(2, 5):
        with pytest.raises(errors.TlsPinMismatch):
            ask("SELECT 1", **options, tls_pin=pin_of(certificate))
        recorder.wait(count)
    assert recorder.handshakes == 4
    assert recorder.inside == []
    assert recorder.outside == [SSL_REQUEST] * 3


def test_the_next_server_may_have_the_key(ask, options, recorder, certificate):
    several = {
        **options,
        "host": "localhost,localhost",
        "port": f"{recorder.port},{options['port']}",
    }
    assert ask("SELECT 1", **several, tls_pin=pin_of(certificate)) == 1
    assert recorder.inside == []


def test_a_server_that_refuses_tls(ask, options, certificate):
    """It could be anybody: who would go on without TLS would show him the password."""
    said = []

    def refuse(listener):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with sock:
                    said.append(sock.recv(8, socket.MSG_WAITALL))
                    sock.sendall(b"N")
                    said.append(sock.recv(65536))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=refuse, args=(listener,), daemon=True)
        thread.start()
        where = {**options, "host": "127.0.0.1", "port": listener.getsockname()[1]}
        with pytest.raises(errors.OperationalError, match="does not support SSL"):
            ask("SELECT 1", **where, tls_pin=pin_of(certificate))
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(LIMIT)
    assert said == [SSL_REQUEST, b""]


def test_checks_leave_nothing_behind(options, recorder, aflat, run, certificate):
    async def main():
        async def one():
            with pytest.raises(errors.TlsPinMismatch):
                await aio.connect(**options, tls_pin=OTHER)
            c = await aio.connect(**options, tls_pin=pin_of(certificate))
            assert c.tls.certificate.names
            await c.close()
            with pytest.raises(errors.TlsPinMismatch):
                await async_(pg.connect)(**options, tls_pin=OTHER)

        await aflat(one, 20)

    run(main())
