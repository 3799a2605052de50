"""The PostgreSQL that the system has installed, for what the embedded one is built without: TLS,
and extensions such as pgTAP.

`system_server`  a server that the tests share: TLS, and a role for each way to authenticate
`pgtap_url`      a database with pgTAP
"""

import hashlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme
from fix_missing import missing
from fix_postgres import SETTINGS, OwnServer, TemporaryDatabase, ask

MD5 = hashlib.md5(b"md5" + b"by_md5").hexdigest()  # of the password and the role's name
ROLES = (
    "CREATE ROLE by_scram LOGIN PASSWORD 'scram'",
    "CREATE ROLE by_password LOGIN PASSWORD 'password'",
    "CREATE ROLE by_certificate LOGIN",
    f"CREATE ROLE by_md5 LOGIN PASSWORD 'md5{MD5}'",
    "CREATE ROLE only_tls LOGIN PASSWORD 'tls'",
    "CREATE ROLE only_plain LOGIN PASSWORD 'plain'",
)

# Who may come how. The first line that fits decides.
HBA = """
local     all         all                        trust
hostssl   all         by_certificate 127.0.0.1/32 cert
hostssl   all         only_tls     127.0.0.1/32  scram-sha-256
host      all         only_tls     127.0.0.1/32  reject
hostnossl all         only_plain   127.0.0.1/32  scram-sha-256
host      all         only_plain   127.0.0.1/32  reject
host      all         by_md5       127.0.0.1/32  md5
host      all         by_password  127.0.0.1/32  password
host      all         all          127.0.0.1/32  scram-sha-256
"""


def system_binaries() -> Path | None:
    """The folder of the newest PostgreSQL server that the system has; None if it has none."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda folder: int(folder.parent.name))
    program = shutil.which("initdb")
    return None if program is None else Path(program).resolve().parent


class SystemServer(OwnServer):
    """A server with TLS; its certificate is for localhost, by `authority`."""

    def __init__(self, binaries: Path) -> None:
        super().__init__(binaries=binaries, settings={**SETTINGS, "ssl": "on"})
        self.authority = trustme.CA()

    def _init_data(self) -> None:
        super()._init_data()
        (self.data_dir / "pg_hba.conf").write_text(HBA)
        self.authority.cert_pem.write_to_path(self.data_dir / "root.crt")
        self.write_certificate(self.authority.issue_cert("localhost"))
        self._settings["ssl_ca_file"] = "root.crt"

    def write_certificate(self, issued: trustme.LeafCert) -> None:
        """Make that one the server's, from its next start or reload on."""
        issued.cert_chain_pems[0].write_to_path(self.data_dir / "server.crt")
        key = self.data_dir / "server.key"
        key.touch(0o600)
        issued.private_key_pem.write_to_path(key)
        if self._as_user:
            os.chown(key, self._as_user["user"], self._as_user["group"])

    @contextmanager
    def certificate(self, issued: trustme.LeafCert) -> Iterator[None]:
        """Have the server show that one for as long as the block runs."""
        try:
            self.write_certificate(issued)
            self._reload()
            yield
        finally:
            self.write_certificate(self.authority.issue_cert("localhost"))
            self._reload()

    def _reload(self) -> None:
        """Have it read its files again; whoever connects after this gets what they say."""
        loaded = "SELECT pg_conf_load_time()::text"
        before = ask(self.url, loaded)
        os.kill(self.pid, signal.SIGHUP)
        while ask(self.url, loaded) == before:
            time.sleep(0.005)


_SERVER = pytest.StashKey[SystemServer]()


def start_system_server(config: pytest.Config) -> SystemServer:
    """The one that all tests share; it is started by the first who asks."""
    server = config.stash.get(_SERVER, None)
    if server is None:
        binaries = system_binaries()
        if binaries is None:
            missing("the system has no PostgreSQL server: apt-get install postgresql")
        server = config.stash[_SERVER] = SystemServer(binaries)
        config.add_cleanup(server.stop)
        server.start()
        for role in ROLES:
            ask(server.url, role)
    return server


@pytest.fixture(scope="session")
def system_server(request: pytest.FixtureRequest) -> SystemServer:
    """The system's PostgreSQL with TLS, and a role for each way to authenticate."""
    return start_system_server(request.config)


_PGTAP = pytest.StashKey[str]()


def start_pgtap_database(config: pytest.Config) -> str:
    """The URL of a database with pgTAP that all tests share: on DATABASE_URL's server if that has
    the extension, else on the system's."""
    if _PGTAP not in config.stash:
        url = os.environ.get("DATABASE_URL", "")
        known = "SELECT 1 FROM pg_available_extensions WHERE name = 'pgtap'"
        if not url or not ask(url, known):
            url = start_system_server(config).url
        if not ask(url, known):
            missing("PostgreSQL has no pgTAP: apt-get install postgresql-15-pgtap, or the like")
        database = TemporaryDatabase(url)
        database.__enter__()
        config.add_cleanup(database.__exit__)
        ask(database.url, "CREATE EXTENSION pgtap")
        config.stash[_PGTAP] = database.url
    return config.stash[_PGTAP]


@pytest.fixture(scope="session")
def pgtap_url(request: pytest.FixtureRequest) -> str:
    """The URL of a database with pgTAP, which tests leave as it was."""
    return start_pgtap_database(request.config)
