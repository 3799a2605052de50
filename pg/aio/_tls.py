"""What asyncpg's `ssl` means in libpq's options."""

from __future__ import annotations

import atexit
import hashlib
import os
import ssl
import tempfile
from collections.abc import Mapping
from typing import Any

from greenletio import _pg
from greenletio.pg.errors import NotSupportedError

__all__ = ("options_of",)

_VERSIONS = {
    ssl.TLSVersion.TLSv1: "TLSv1",
    ssl.TLSVersion.TLSv1_1: "TLSv1.1",
    ssl.TLSVersion.TLSv1_2: "TLSv1.2",
    ssl.TLSVersion.TLSv1_3: "TLSv1.3",
}
_files: dict[bytes, str] = {}


def options_of(value: Any, given: Mapping[str, Any]) -> dict[str, str]:
    """Of a mode, True (verify all, by the system's authorities), False, or an SSLContext."""
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        return {"sslmode": value}
    if value is False:
        return {"sslmode": "disable"}
    if value is True:
        return {"sslmode": "verify-full", **_authorities(given)}
    if isinstance(value, ssl.SSLContext):
        return _of_context(value, given)
    raise TypeError(
        f"ssl is a libpq sslmode, True, False, or an ssl.SSLContext, not {type(value).__name__}"
    )


def _of_context(context: ssl.SSLContext, given: Mapping[str, Any]) -> dict[str, str]:
    if context.verify_flags & (ssl.VERIFY_CRL_CHECK_LEAF | ssl.VERIFY_CRL_CHECK_CHAIN):
        raise NotSupportedError("an SSLContext's revocation lists: name the file by sslcrl=")
    options = {}
    if context.verify_mode != ssl.CERT_REQUIRED:
        options["sslmode"] = "require"
    else:
        options["sslmode"] = "verify-full" if context.check_hostname else "verify-ca"
        trusted = context.get_ca_certs(binary_form=True)
        if trusted:
            options["sslrootcert"] = _file(trusted)
        else:
            options |= _authorities(given)
    if context.minimum_version in _VERSIONS:
        options["ssl_min_protocol_version"] = _VERSIONS[context.minimum_version]
    if context.maximum_version in _VERSIONS:
        options["ssl_max_protocol_version"] = _VERSIONS[context.maximum_version]
    return options


def _authorities(given: Mapping[str, Any]) -> dict[str, str]:
    """The system's, unless others are named."""
    if given.get("sslrootcert") or os.environ.get("PGSSLROOTCERT"):
        return {}
    if _pg.libpq_version() >= 160000:
        return {"sslrootcert": "system"}
    path = ssl.get_default_verify_paths().cafile
    return {} if path is None else {"sslrootcert": path}


def _file(certificates: list[bytes]) -> str:
    """A file with them, for as long as this process runs: libpq may connect again to cancel."""
    text = "".join(ssl.DER_cert_to_PEM_cert(each) for each in certificates)
    key = hashlib.sha256(text.encode()).digest()
    if key not in _files or not os.path.exists(_files[key]):
        with tempfile.NamedTemporaryFile("w", suffix=".pem", delete=False) as file:
            file.write(text)
        atexit.register(_remove, file.name, os.getpid())
        _files[key] = file.name
    return _files[key]


def _remove(path: str, pid: int) -> None:
    if pid == os.getpid() and os.path.exists(path):
        os.unlink(path)
