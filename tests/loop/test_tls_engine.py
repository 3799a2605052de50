"""The TLS engine against itself and against Python's own sessions, without any transport."""

import _ssl
import ctypes
import itertools
import ssl

import pytest
import trustme
from fix_tls import bad_record

from greenletio import _core, _tls

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate(authority):
    return authority.issue_cert("localhost")


class Ours:
    """One end of a connection, driven by the engine."""

    def __init__(self, context, **options):
        self.object = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), **options)
        self.engine = _core.TlsEngine(self.object)
        self.feed = self.engine.feed
        self.take = self.engine.take
        self.write = self.engine.write

    def read(self, size=1 << 20):
        return self.engine.read(size)


class Pythons:
    """One end of a connection, driven by Python's ssl module alone."""

    def __init__(self, context, **options):
        self.inbox, self.outbox = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self.inbox, self.outbox, **options)
        self.feed = self.inbox.write
        self.take = self.outbox.read
        self.write = self.object.write

    def read(self, size=1 << 20):
        got = []
        try:
            while piece := self.object.read(size):
                got.append(piece)
        except ssl.SSLWantReadError:
            return b"".join(got) or None
        return b"".join(got)


class Pair:
    def __init__(self, server, client):
        self.server, self.client = server, client

    def other(self, end):
        return self.client if end is self.server else self.server

    def carry(self, size=None):
        """Carry all ciphertext to where it belongs, in pieces of some size."""
        for end in (self.server, self.client):
            data = end.take()
            step = size or max(len(data), 1)
            for at in range(0, len(data), step):
                self.other(end).feed(data[at : at + step])

    def shake_hands(self, size=None):
        todo = [self.client, self.server]
        while todo:
            for end in list(todo):
                try:
                    end.object.do_handshake()
                    todo.remove(end)
                except ssl.SSLWantReadError:
                    pass
            self.carry(size)
        # TLS 1.3's session tickets come after it.
        assert self.client.read() is None


@pytest.fixture(scope="module")
def contexts(authority, certificate):
    """contexts(version): one for the server and one for the client."""

    def make(version):
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(server)
        client = ssl.create_default_context()
        authority.configure_trust(client)
        for context in (server, client):
            context.minimum_version = context.maximum_version = VERSIONS[version]
        return server, client

    return make


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


@pytest.fixture(params=[(Ours, Ours), (Ours, Pythons), (Pythons, Ours)])
def pair(request, contexts, version):
    server, client = contexts(version)
    server_class, client_class = request.param
    pair = Pair(
        server_class(server, server_side=True), client_class(client, server_hostname="localhost")
    )
    pair.shake_hands()
    return pair


@pytest.fixture
def ours(contexts, version):
    server, client = contexts(version)
    pair = Pair(Ours(server, server_side=True), Ours(client, server_hostname="localhost"))
    pair.shake_hands()
    return pair


def test_the_session_is_as_python_made_it(pair, version):
    for end in (pair.server, pair.client):
        assert end.object.version() == f"TLSv{version}"
    assert pair.client.object.getpeercert()["subjectAltName"] == (("DNS", "localhost"),)


def test_data_goes_both_ways(pair):
    for _ in range(3):
        for end in (pair.client, pair.server):
            assert end.write(b"question") == 8
            pair.carry()
            assert pair.other(end).read() == b"question"
            assert pair.other(end).read() is None


def test_handshake_and_data_that_arrive_byte_by_byte(contexts, version):
    server, client = contexts(version)
    pair = Pair(Ours(server, server_side=True), Ours(client, server_hostname="localhost"))
    pair.shake_hands(size=1)
    data = bytes(range(256)) * 100
    pair.client.write(data)
    got = b""
    for byte in pair.client.take():
        pair.server.feed(bytes([byte]))
        got += pair.server.read() or b""
    assert got == data


def test_large_data(pair):
    data = bytes(range(256)) * 20_000
    for end in (pair.client, pair.server):
        sent, got = 0, b""
        while sent < len(data):
            sent += end.write(data[sent : sent + 1_000_000])
            pair.carry()
            got += pair.other(end).read(1 << 23)
        assert got == data


def test_reads_smaller_than_what_has_arrived(ours):
    ours.client.write(b"x" * 40_000)
    ours.carry()
    sizes = []
    assert ours.server.engine.pending
    while data := ours.server.read(999):
        sizes.append(len(data))
    assert sum(sizes) == 40_000
    assert set(sizes[:-1]) == {999}
    assert not ours.server.engine.pending


def test_what_arrives_while_some_is_left_is_not_lost(ours):
    got = b""
    for i in range(200):
        ours.client.write(b"%03d" % i * 10)
        ours.carry()
        got += ours.server.read(7)
    while data := ours.server.read(7):
        got += data
    assert got == b"".join(b"%03d" % i * 10 for i in range(200))


def test_many_small_writes_are_sent_as_one(ours):
    for i in range(100):
        ours.client.write(b"%d" % i)
    ours.carry()
    assert ours.server.read() == b"".join(b"%d" % i for i in range(100))


def test_close_notify(pair):
    pair.client.write(b"the last")
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.object.unwrap()
    pair.carry()
    if isinstance(pair.server, Ours):  # Python's read is not told data from its end
        assert pair.server.read() == b"the last"
        assert pair.server.read() == b""
        assert pair.server.read() == b""
    else:
        assert pair.server.read() == b"the last"
    pair.server.object.unwrap()
    pair.carry()
    pair.client.object.unwrap()


def test_no_close_notify_is_no_end(pair):
    pair.client.write(b"the last")
    pair.carry()
    assert pair.server.read() == b"the last"
    assert pair.server.read() is None


def test_garbage(ours):
    ours.client.write(b"fine")
    ours.carry()
    ours.server.feed(b"GET / HTTP/1.0\r\n\r\n")
    assert ours.server.read() == b"fine"
    for _ in range(2):
        with pytest.raises(ssl.SSLError) as raised:
            ours.server.read()
    assert raised.value.library == "SSL"
    reason = bad_record("WRONG_VERSION_NUMBER")
    words = reason.lower().replace("_", " ")
    assert raised.value.reason == reason
    assert str(raised.value).startswith(f"[SSL: {reason}] {words}")
    # The peer is told, and hears it as Python would say it.
    ours.carry()
    with pytest.raises(ssl.SSLError, match="ALERT"):
        ours.client.read()


def test_a_record_that_was_tampered_with(pair):
    pair.client.write(b"fine")
    data = bytearray(pair.client.take())
    data[-1] ^= 1
    pair.server.feed(data)
    with pytest.raises(ssl.SSLError) as raised:
        pair.server.read()
    assert raised.value.reason == bad_record("DECRYPTION_FAILED_OR_BAD_RECORD_MAC")


def test_an_error_does_not_reach_the_next_session(contexts, ours):
    ours.server.feed(b"GET / HTTP/1.0\r\n\r\n")
    with pytest.raises(ssl.SSLError):
        ours.server.read()
    server, client = contexts("1.3")
    pair = Pair(Pythons(server, server_side=True), Pythons(client, server_hostname="localhost"))
    pair.shake_hands()
    pair.client.write(b"fine")
    pair.carry()
    assert pair.server.read() == b"fine"


@pytest.mark.parametrize("version", ["1.3"], indirect=True)
def test_key_update(pair, version):
    """The peer that is asked for new keys of its own answers in the middle of a read."""
    openssl = ctypes.CDLL(_ssl.__file__)
    asking = pair.client if isinstance(pair.client, Ours) else pair.server
    answering = pair.other(asking)
    key_update_requested = 1
    assert openssl.SSL_key_update(ctypes.c_void_p(asking.engine.address), key_update_requested) == 1
    asking.write(b"with new keys")
    pair.carry()
    assert answering.read() == b"with new keys"
    if isinstance(answering, Ours):
        assert answering.engine.read(10) is None
    for end in (answering, asking):
        end.write(b"with newer keys")
        pair.carry()
        assert pair.other(end).read() == b"with newer keys"


def test_a_client_certificate_that_is_refused_after_the_handshake(contexts):
    """In TLS 1.3 the client hears of it when it reads."""
    server, client = contexts("1.3")
    server.verify_mode = ssl.CERT_REQUIRED
    pair = Pair(Pythons(server, server_side=True), Ours(client, server_hostname="localhost"))
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.object.do_handshake()
    pair.carry()
    with pytest.raises(ssl.SSLWantReadError):
        pair.server.object.do_handshake()
    pair.carry()
    pair.client.object.do_handshake()
    pair.carry()
    with pytest.raises(ssl.SSLError):
        pair.server.object.do_handshake()
    pair.carry()
    with pytest.raises(ssl.SSLError) as raised:
        pair.client.read()
    assert raised.value.reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED"


def test_a_session_outlives_its_engine(ours):
    session = ours.client.object
    ours.client = None
    assert session.version() is not None
    with pytest.raises(OSError):  # of OpenSSL or of the system, as its version has it
        session.read(10)


def test_only_sessions_of_pythons_are_taken():
    class Lookalike:
        _sslobj = object()

    with pytest.raises(NotImplementedError):
        _core.TlsEngine(Lookalike())
    with pytest.raises(AttributeError):
        _core.TlsEngine(object())


def test_every_split_of_two_records(contexts):
    server, client = contexts("1.3")
    pair = Pair(Ours(server, server_side=True), Ours(client, server_hostname="localhost"))
    pair.shake_hands()
    for count in itertools.count():
        pair.client.write(b"one")
        pair.client.write(b"two")
        data = pair.client.take()
        if count > len(data):
            break
        pair.server.feed(data[:count])
        got = pair.server.read() or b""
        if count < len(data):
            pair.server.feed(data[count:])
            got += pair.server.read()
        assert got == b"onetwo"


def test_a_session_has_one_engine_at_a_time(contexts):
    _, client = contexts("1.3")
    session = client.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost")
    engine = _core.TlsEngine(session)
    with pytest.raises(RuntimeError, match="in use"):
        _core.TlsEngine(session)
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    hello = engine.take()
    assert hello
    del engine
    with pytest.raises(ssl.SSLError):
        session.do_handshake()  # its connection has gone
    engine = _core.TlsEngine(session)
    assert engine.take() == b""


@pytest.mark.parametrize("kind", [_core.TlsTransport, _tls.SSLTransport])
def test_a_transport_that_was_never_started(kind):
    transport = kind.__new__(kind)
    transport._state = 77
    assert "unwrapped" in repr(transport)
    transport._state = _tls.WRAPPED
    transport.write(b"nowhere")
    transport.writelines([b"nowhere"])
    transport.pause_reading()
    transport.resume_reading()
    transport.set_write_buffer_limits(high=0)
    assert transport.get_write_buffer_size() == 0
    assert transport.get_protocol() is None
    assert not transport.is_closing()
    for call in (transport._read, transport._discard, transport._flush, transport._let_go):
        call()
    with pytest.raises(RuntimeError, match="not been started"):
        transport.set_protocol(None)
