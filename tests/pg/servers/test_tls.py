"""TLS and authentication against a server that has both: every sslmode, certificates good and bad,
SCRAM with and without channel binding, md5, passwords."""

import datetime

import pytest
import trustme

from greenletio.pg import errors

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)
TLS = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"


pytestmark = pytest.mark.usefixtures("libpq_with_tls")


@pytest.fixture
def options(system_server):
    """What every connect() here begins with: a name, so that several addresses are tried."""
    return {
        "host": "localhost",
        "port": system_server.port,
        "database": "postgres",
        "user": "by_scram",
        "password": "scram",
    }


def test_sslmodes(ask, options, files):
    # What the server would take either way.
    for mode, encrypted in {
        "disable": False,
        "allow": False,
        "prefer": True,
        "require": True,
    }.items():
        assert ask(TLS, **options, sslmode=mode) is encrypted, mode
    # What it takes one way only.
    only_tls = {**options, "user": "only_tls", "password": "tls"}
    only_plain = {**options, "user": "only_plain", "password": "plain"}
    for mode in ("allow", "prefer", "require"):
        assert ask(TLS, **only_tls, sslmode=mode) is True, mode
    for mode in ("disable", "allow", "prefer"):
        assert ask(TLS, **only_plain, sslmode=mode) is False, mode
    with pytest.raises(errors.InvalidAuthorizationSpecification, match="rejects.*no encryption"):
        ask(TLS, **only_tls, sslmode="disable")
    with pytest.raises(errors.InvalidAuthorizationSpecification, match="rejects.*SSL encryption"):
        ask(TLS, **only_plain, sslmode="require")
    with pytest.raises(errors.Error, match='invalid sslmode value: "perhaps"'):
        ask(TLS, **options, sslmode="perhaps")


def test_verifying_the_server(ask, options, files):
    right = files.root(files.authority, "right")
    wrong = files.root(trustme.CA(), "wrong")
    for mode in ("verify-ca", "verify-full"):
        assert ask(TLS, **options, sslmode=mode, sslrootcert=right) is True
        with pytest.raises(errors.OperationalError, match="certificate verify failed"):
            ask(TLS, **options, sslmode=mode, sslrootcert=wrong)
        with pytest.raises(errors.OperationalError, match='root certificate file "/no/such'):
            ask(TLS, **options, sslmode=mode, sslrootcert="/no/such/file")
    # The certificate is for another name than the one that was asked for.
    by_address = {**options, "host": "127.0.0.1"}
    assert ask(TLS, **by_address, sslmode="verify-ca", sslrootcert=right) is True
    with pytest.raises(errors.OperationalError, match='does not match host name "127.0.0.1"'):
        ask(TLS, **by_address, sslmode="verify-full", sslrootcert=right)
    # require with a root certificate verifies it as verify-ca does.
    with pytest.raises(errors.OperationalError, match="certificate verify failed"):
        ask(TLS, **options, sslmode="require", sslrootcert=wrong)


def test_a_server_whose_certificate_has_expired(ask, options, files, system_server):
    right = files.root(files.authority, "right")
    old = files.authority.issue_cert("localhost", not_before=NOW - 2 * DAY, not_after=NOW - DAY)
    with system_server.certificate(old):
        with pytest.raises(errors.OperationalError, match="certificate has expired|verify failed"):
            ask(TLS, **options, sslmode="verify-ca", sslrootcert=right)
        assert ask(TLS, **options, sslmode="require") is True  # nobody looks at it
    assert ask(TLS, **options, sslmode="verify-full", sslrootcert=right) is True


def test_client_certificates(ask, options, files):
    del options["password"]
    options = {**options, "user": "by_certificate", "sslmode": "require"}
    issue = files.authority.issue_cert

    def certificate(name, authority=issue, user="by_certificate", **when):
        return files.client(authority("client@example.org", common_name=user, **when), name)

    assert ask("SELECT session_user::text", **options, **certificate("good")) == "by_certificate"
    with pytest.raises(errors.InvalidAuthorizationSpecification, match="failed"):
        ask(TLS, **options, **certificate("other", user="somebody"))
    with pytest.raises(errors.InvalidAuthorizationSpecification, match="valid client certificate"):
        ask(TLS, **options)
    for refused in (
        certificate("foreign", trustme.CA().issue_cert),
        certificate("old", not_before=NOW - 2 * DAY, not_after=NOW - DAY),
    ):
        # In TLS 1.3 the server's refusal comes after the client's side of the handshake.
        with pytest.raises(errors.OperationalError, match="alert|closed the connection|reset"):
            ask(TLS, **options, **refused)
    mixed = {**certificate("one"), "sslkey": certificate("two")["sslkey"]}
    with pytest.raises(errors.OperationalError, match="does not match private key|mismatch"):
        ask(TLS, **options, **mixed)
    with pytest.raises(errors.OperationalError, match="certificate present, but not private key"):
        ask(TLS, **options, sslcert=mixed["sslcert"], sslkey="/no/such/key")


def test_passwords(ask, options):
    me = "SELECT session_user::text"
    for kind in ("scram", "md5", "password"):
        for mode in ("disable", "require"):
            who = {**options, "user": f"by_{kind}", "password": kind, "sslmode": mode}
            assert ask(me, **who) == f"by_{kind}"
        with pytest.raises(errors.InvalidPassword, match="authentication failed") as caught:
            ask(me, **{**who, "password": "wrong"})
        assert caught.value.sqlstate == "28P01"
        with pytest.raises(errors.OperationalError, match="no password supplied"):
            ask(me, **{**who, "password": None, "passfile": "/no/such/file"})
        with pytest.raises(errors.InvalidPassword):
            ask(me, **{**who, "user": "nobody_at_all"})


def test_who_is_refused_does_not_ask_the_next_server(ask, options):
    several = {**options, "host": "127.0.0.1,localhost", "port": f"{options['port']}," * 2}
    several["port"] = several["port"].strip(",")
    with pytest.raises(errors.InvalidPassword) as caught:
        ask("SELECT 1", **{**several, "password": "wrong"}, sslmode="disable")
    assert str(caught.value).count("connection to server") == 1
    assert ask("SELECT 1", **several) == 1


def test_the_password_file(ask, options, tmp_path):
    file = tmp_path / "pgpass"
    file.write_text("localhost:*:postgres:by_scram:scram\n")
    file.chmod(0o600)
    del options["password"]
    assert ask("SELECT 1", **options, passfile=str(file)) == 1
    file.write_text("localhost:*:postgres:by_scram:wrong\n")
    with pytest.raises(errors.InvalidPassword, match="password retrieved from file"):
        ask("SELECT 1", **options, passfile=str(file))


def test_channel_binding(ask, options):
    for binding in ("disable", "prefer", "require"):
        assert ask(TLS, **options, sslmode="require", channel_binding=binding) is True
    refused = pytest.raises(errors.OperationalError, match="channel binding")
    with refused:
        ask(TLS, **options, sslmode="disable", channel_binding="require")
    with refused:
        md5 = {**options, "user": "by_md5", "password": "md5"}
        ask(TLS, **md5, sslmode="require", channel_binding="require")
