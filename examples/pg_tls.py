"""Trust on first use: the server's key is remembered, and nobody else is shown the password.

DATABASE_URL="postgresql://user:password@host/test?sslmode=require" python pg_tls.py known-key
"""

import os
import sys
from pathlib import Path

from greenletio import pg

URL = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/test?sslmode=require")


def main() -> None:
    file = Path(sys.argv[1])
    pin = file.read_text().strip() if file.exists() else None
    with pg.connect(URL, tls_pin=pin) as connection:
        tls = connection.tls
        assert tls is not None and tls.certificate is not None, "the server has no TLS"
        if pin is None:
            file.write_text(tls.certificate.pin)
        print(f"{tls.version} with {tls.certificate.subject}, until {tls.certificate.not_after}")
        print("a key that is known" if pin else "a key that was not known before")


if __name__ == "__main__":
    try:
        main()
    except pg.errors.TlsPinMismatch as exc:
        sys.exit(f"somebody else answers: {exc}")
