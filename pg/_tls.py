"""What TLS has agreed on, and keys of servers that are known beforehand."""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import hmac
import ipaddress
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from greenletio import _pg
from greenletio.pg._conninfo import conninfo
from greenletio.pg.errors import ProgrammingError, TlsPinMismatch

__all__ = ("TLS", "Certificate", "demand", "tls_of")

#: Kinds of a certificate's names, by X.509's numbers, as Python's ssl calls them.
_KINDS = {1: "email", 2: "DNS", 6: "URI", 7: "IP Address"}
_WEAK = ("disable", "allow", "prefer")


@dataclass(frozen=True)
class Certificate:
    """What a server has shown. Whether anybody has looked at it says the connection's sslmode."""

    der: bytes
    #: Its public key (SubjectPublicKeyInfo), as DER: what a pin is of.
    public_key: bytes
    #: Distinguished names, as RFC 4514 writes them: "CN=localhost,O=…".
    subject: str
    issuer: str
    #: What it is for: ("DNS", "localhost"), ("IP Address", "127.0.0.1"), "email", "URI".
    names: tuple[tuple[str, str], ...]
    #: Aware, in UTC; None: not a time that can be read.
    not_before: datetime.datetime | None
    not_after: datetime.datetime | None

    @property
    def pem(self) -> str:
        """The certificate as PEM."""
        return ssl.DER_cert_to_PEM_cert(self.der)

    @property
    def pin(self) -> str:
        """What connect()'s ``tls_pin`` takes: "sha256/…", of the public key, in base64."""
        return f"sha256/{base64.b64encode(_digest(self.public_key)).decode()}"

    @property
    def public_key_sha256(self) -> str:
        """The same in hexadecimal digits."""
        return _digest(self.public_key).hex()


@dataclass(frozen=True)
class TLS:
    """What a connection's TLS has agreed on."""

    #: "TLSv1.3", say.
    version: str
    #: OpenSSL's name: "TLS_AES_256_GCM_SHA384", say.
    cipher: str
    #: The application protocol; None where libpq (before 17) or the server knows of none.
    alpn: str | None
    #: The server's; None: it has shown none.
    certificate: Certificate | None


def tls_of(raw: _pg.Connection) -> TLS | None:
    """None: the connection is closed, or not encrypted. NotSupportedError: see tls.c."""
    facts = raw._tls_facts()
    if facts is None:
        return None
    certificate = None
    if "der" in facts:
        certificate = Certificate(
            der=facts["der"],
            public_key=facts["key"],
            subject=facts["subject"],
            issuer=facts["issuer"],
            names=tuple((_KINDS[kind], _name(kind, value)) for kind, value in facts["names"]),
            not_before=_moment(facts["not_before"]),
            not_after=_moment(facts["not_after"]),
        )
    return TLS(facts["version"], facts["cipher"], facts["alpn"], certificate)


def _moment(parts: tuple[int, ...] | None) -> datetime.datetime | None:
    if parts is None or not 1 <= parts[0] <= 9999:
        return None
    return datetime.datetime(*parts, tzinfo=datetime.timezone.utc)  # type: ignore[misc,arg-type]


def _name(kind: int, value: bytes) -> str:
    if kind == 7 and len(value) in (4, 16):
        return str(ipaddress.ip_address(value))
    return value.hex() if kind == 7 else value.decode("utf-8", "replace")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


# ---- pins


def _pins(given: str | Iterable[str]) -> list[bytes]:
    """The digests; ValueError."""
    digests = []
    for pin in [given] if isinstance(given, str) else given:
        kind, slash, text = pin.partition("/") if isinstance(pin, str) else ("", "", "")
        if len(text) == 45:  # as curl has it, with two slashes; base64 may begin with one as well
            text = text.removeprefix("/")
        try:
            digest = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            digest = b""
        if kind != "sha256" or len(digest) != 32:
            raise ValueError(
                f"tls_pin takes 'sha256/' and the SHA-256 of the server's public key in base64, "
                f"one or a list, not {pin!r}; connection.tls.certificate.pin is that of a server"
            )
        digests.append(digest)
    if not digests:
        raise ValueError("tls_pin names no key at all: no server could be connected to")
    return digests


def _checker(digests: list[bytes]) -> Callable[[bytes | None], None]:
    def check(key: bytes | None) -> None:
        if key is None:
            raise TlsPinMismatch(
                "the connection has no TLS, or the server has shown no certificate, so its key "
                "cannot be that of tls_pin: nothing but the names of user and database was sent "
                "(a Unix socket never has TLS)"
            )
        digest = _digest(key)
        if not any(hmac.compare_digest(digest, one) for one in digests):
            raise TlsPinMismatch(
                f"the server's key is sha256/{base64.b64encode(digest).decode()}, which is none of "
                f"tls_pin: nothing was sent to it"
            )

    return check


def demand(
    raw: _pg.Connection, options: Mapping[str, str], pins: str | Iterable[str] | None
) -> dict[str, str]:
    """Have a connection that is to be made accept these keys only; its options with TLS."""
    if pins is None:
        return dict(options)
    check = _checker(_pins(pins))
    if options.get("sslmode") in _WEAK:
        raise ProgrammingError(
            f"tls_pin needs TLS, which sslmode={options['sslmode']} may do without: "
            "leave it out, or name require, verify-ca or verify-full"
        )
    raw._tls_check = check
    # libpq reads all options, of service files and the environment, too, and stops at this one.
    probe = {**options, "target_session_attrs": "only-read-the-options"}
    found: dict[str, Any] = _pg.complete_conninfo(conninfo(probe))
    strong = {} if found.get("sslmode", "prefer") not in _WEAK else {"sslmode": "require"}
    return {**options, **strong, "gssencmode": "disable"}
