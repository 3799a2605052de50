"""pytest --pgtap: what scripts say becomes items, and everything that may go wrong says so."""

import textwrap
from collections.abc import Callable

import pytest
from fix_postgres import OwnServer, TemporaryDatabase, ask
from fix_system_postgres import SystemServer

from greenletio.integrations._tap import Tap
from greenletio.pg._script import statements

Pytester = pytest.Pytester
RunScripts = Callable[..., pytest.RunResult]


@pytest.fixture
def run_scripts(pytester: Pytester, pgtap_url: str) -> RunScripts:
    """Writes scripts to files, and runs pytest on them."""

    def run_scripts(*options: str, dsn: str | None = pgtap_url, **scripts: str) -> pytest.RunResult:
        for name, script in scripts.items():
            pytester.path.joinpath(f"{name}.sql").write_text(textwrap.dedent(script).strip())
        given = () if dsn is None else ("--pgtap-dsn", dsn)
        return pytester.runpytest("--pgtap", "-rA", "-p", "no:asyncio", *given, *options)

    return run_scripts


def names(result: pytest.RunResult, outcome: str) -> list[str]:
    """The items with an outcome, as the summary has them."""
    found = [line.removeprefix(f"{outcome} ") for line in result.outlines]
    return [
        line.partition(" - ")[0].partition("::")[2]
        for line in found
        if "::" in line and f"{outcome} {line}" in result.outlines
    ]


GOOD = """
    \\set QUIET 1
    \\pset format unaligned
    SELECT plan(4);
    CREATE TABLE fruit (name text, price numeric);
    INSERT INTO fruit VALUES ('a;pple', 1.5), ('pear', 2);
    SELECT has_table('fruit');
    SELECT is(sum(price), 3.5, 'prices: sum::numeric # all') FROM fruit;
    SELECT results_eq('SELECT name FROM fruit ORDER BY 1', ARRAY['a;pple', 'pear'], 'names');
    SELECT ok(true);
    SELECT * FROM finish();
"""


def test_an_item_for_each_assertion(run_scripts: RunScripts, pgtap_url: str) -> None:
    result = run_scripts(good=GOOD)
    result.assert_outcomes(passed=5)
    assert names(result, "PASSED") == [
        "Table fruit should exist",
        "prices: sum:numeric # all",
        "names",
        "test 4",
        "script",
    ]
    assert ask(pgtap_url, "SELECT to_regclass('fruit')") == [(None,)]


def test_a_failure_shows_what_pgtap_says_and_where(run_scripts: RunScripts) -> None:
    result = run_scripts(
        bad="""
        SELECT plan(2);
        SELECT is(
            1, 2, 'one is two');
        SELECT diag('a remark');
        SELECT ok(true, 'fine');
        SELECT * FROM finish();
        """
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*bad.sql:2: not ok 1 - one is two*",
            "*have: 1*",
            "*want: 2*",
            "# a remark",
            "FAILED bad.sql::one is two - bad.sql:2: not ok 1 - one is two",
        ]
    )


def test_skip_and_todo(run_scripts: RunScripts) -> None:
    result = run_scripts(
        some="""
        SELECT * FROM no_plan();
        SELECT skip('not today', 1);
        SELECT todo('some day', 2);
        SELECT ok(false, 'undone');
        SELECT ok(true, 'done already');
        SELECT ok(true, 'plain');
        SELECT * FROM finish();
        """,
        none="SELECT '1..0 # SKIP nothing to do here';",
    )
    result.assert_outcomes(passed=2, skipped=2, xfailed=1, xpassed=1)
    result.stdout.fnmatch_lines(["XFAIL some.sql::undone - some day"])
    result.stdout.fnmatch_lines_random(["SKIPPED*not today", "SKIPPED*nothing to do here"])


WRONG = {
    "SELECT plan(3); SELECT ok(true); SELECT * FROM finish();": "3 tests were planned, 1 ran",
    "SELECT '1..1'; SELECT 'ok 1'; SELECT 'ok 2';": "1 tests were planned, 2 ran",
    "SELECT 1;": "no plan: *",
    "SELECT '1..2'; SELECT 'ok 1'; SELECT 'ok 3';": "line 1: test 3 came where 2 was due",
    "SELECT '1..1'; SELECT 'ok 1'; SELECT '1..1';": "line 1: a second plan: 1..1",
    "SELECT plan(2);\nSELECT ok(true);\nSELECT\n  nonsense;\nSELECT ok(true);": (
        'file5.sql:4: UndefinedColumn: column "nonsense" does not exist'
    ),
    "SELECT plan(1);\nSELECT 'oops": "file6.sql:2: SyntaxError: unterminated quoted string*",
    "SELECT plan(1);\nCOPY pg_class FROM STDIN;": "file7.sql:2: *COPY*",
    "SELECT pg_terminate_backend(pg_backend_pid());": "file8.sql:1: AdminShutdown: *",
}


def test_a_script_that_does_not_do_what_it_planned(run_scripts: RunScripts) -> None:
    result = run_scripts(**{f"file{i}": script for i, script in enumerate(WRONG)})
    assert names(result, "FAILED") == ["script"] * len(WRONG)
    result.stdout.fnmatch_lines(list(WRONG.values()))


def test_what_ran_before_an_error_counts(run_scripts: RunScripts) -> None:
    result = run_scripts(
        broken="""
        SELECT plan(3);
        SELECT ok(true, 'before');
        SELECT ok(false, 'it failed');
        SELECT 1 / 0;
        SELECT ok(true, 'after');
        """
    )
    assert names(result, "PASSED") == ["before"]
    assert names(result, "FAILED") == ["it failed", "script"]
    result.stdout.fnmatch_lines(
        ["broken.sql:4: DivisionByZero: division by zero", "2 of 3 planned tests had run"]
    )


def test_bail_out_ends_the_run(run_scripts: RunScripts) -> None:
    result = run_scripts(
        a="SELECT '1..2'; SELECT 'ok 1 - first'; SELECT 'Bail out!  no disk'; SELECT 'ok 2';",
        b=GOOD,
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["Bail out! no disk", "!* Bail out! no disk !*"])


def test_selection(run_scripts: RunScripts) -> None:
    half = "SELECT plan(2); SELECT ok(false, 'red'); SELECT ok(true, 'green: a::b [1]');"
    run_scripts(good=GOOD, half=half).assert_outcomes(passed=7, failed=1)
    assert names(run_scripts("-k", "names or red"), "PASSED") == ["names"]
    assert names(run_scripts("half.sql::green: a:b [1]"), "PASSED") == ["green: a:b [1]"]
    result = run_scripts("good.sql::script", "good.sql::names")
    assert names(result, "PASSED") == ["script", "names"]
    run_scripts()
    result = run_scripts("--lf")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*rerun previous 1 failure*"])
    run_scripts("--lf", half=half.replace("false", "true")).assert_outcomes(passed=1)


def test_scripts_are_kept_apart(run_scripts: RunScripts, pgtap_url: str) -> None:
    script = """
        SELECT plan(1);
        CREATE TABLE apart (a int);
        SET search_path = pg_catalog;
        CREATE TEMP TABLE apart (a int);
        SET search_path TO DEFAULT;
        SELECT has_table('apart');
        SELECT * FROM finish();
    """
    own = "BEGIN;\n" + textwrap.dedent(script) + "ROLLBACK;"
    run_scripts(a=script, b=script, c=own).assert_outcomes(passed=6)
    assert ask(pgtap_url, "SELECT to_regclass('public.apart')") == [(None,)]
    # What cannot be in a transaction runs in a schema of its own.
    script = """
        SELECT plan(1);
        CREATE TABLE apart (a int);
        CREATE INDEX CONCURRENTLY apart_a ON apart (a);
        BEGIN;
        INSERT INTO apart VALUES (1);
        COMMIT;
        SELECT is(count(*), 1::bigint, current_schema()) FROM apart;
        BEGIN;
    """
    result = run_scripts("--pgtap-isolation=schema", a=script, b=script, c="SELECT 1/0;")
    result.assert_outcomes(passed=4, failed=1)
    left = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'pgtap_%'"
    assert ask(pgtap_url, left) == [(0,)]


def test_a_script_that_takes_too_long(run_scripts: RunScripts) -> None:
    result = run_scripts("--pgtap-timeout=0.2", slow="SELECT plan(1);\nSELECT pg_sleep(60);")
    assert names(result, "FAILED") == ["script"]
    result.stdout.fnmatch_lines(["slow.sql:2: the script did not end within 0.2 s"])


def test_where_there_is_no_pgtap(
    run_scripts: RunScripts, own_server: OwnServer, system_server: SystemServer
) -> None:
    with TemporaryDatabase(system_server.url) as database:
        result = run_scripts(dsn=database.url, a="SELECT plan(1);")
    result.stdout.fnmatch_lines(["The database * has no pgTAP: run CREATE EXTENSION*"])
    result = run_scripts(dsn=own_server.url, a="SELECT plan(1);")
    result.stdout.fnmatch_lines(
        [
            "a.sql:1: UndefinedFunction: function plan(integer) does not exist",
            "SELECT plan(1)",
            "HINT: *",
            "The server has no extension pgtap: *",
        ]
    )


def test_where_there_is_no_database(run_scripts: RunScripts) -> None:
    result = run_scripts(dsn="host=127.0.0.1 port=1", a=GOOD)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["pgTAP has no database: *refused*", "Name one by --pgtap-dsn*"])


def test_the_configuration(run_scripts: RunScripts, pytester: Pytester, pgtap_url: str) -> None:
    pytester.makeini(
        f"""
        [pytest]
        pgtap_dsn = {pgtap_url}
        pgtap_files = checks/*.sql *.pg
        pgtap_isolation = schema
        pgtap_timeout = 30
        """
    )
    checks = pytester.mkdir("checks")
    (checks / "one.sql").write_text(GOOD)
    (pytester.path / "two.pg").write_text(GOOD)
    run_scripts(dsn=None, other="SELECT 1/0;").assert_outcomes(passed=10)
    run_scripts("other.sql", dsn=None).assert_outcomes(failed=1)
    result = pytester.runpytest("-p", "no:asyncio")
    result.assert_outcomes()
    pytester.makeconftest(f"def pytest_pgtap_dsn(config): return {pgtap_url!r}")
    pytester.makeini("[pytest]\npgtap_dsn = host=127.0.0.1 port=1\n")
    run_scripts("other.sql", dsn=None).assert_outcomes(failed=1)
    pytester.makeconftest("import pytest\ndef pytest_pgtap_dsn(config): pytest.skip('no server')")
    result = run_scripts("other.sql", dsn=None)
    result.stdout.fnmatch_lines(["SKIPPED*no server*"])
    pytester.makeconftest("")
    pytester.makeini("[pytest]\npgtap_isolation = none\n")
    result = run_scripts("other.sql")
    result.stdout.fnmatch_lines(["*'transaction' or 'schema', not 'none'*"])


def test_psql_commands(run_scripts: RunScripts, pytester: Pytester) -> None:
    (pytester.mkdir("lib") / "table.psql").write_text("CREATE TABLE included (a int);\n")
    run_scripts(
        a="SELECT plan(1);\n\\ir lib/table.psql\nSELECT has_table('included');"
    ).assert_outcomes(passed=2)
    result = run_scripts("b.sql", b="SELECT plan(1);\n\\copy a from b")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*b.sql:2: \\copy a from b: this command of psql*"])
    result = run_scripts("c.sql", c="\\i no/such/file")
    result.stdout.fnmatch_lines(["no/such/file cannot be read: *"])


def test_subtests_of_runtests(run_scripts: RunScripts) -> None:
    result = run_scripts(
        x="""
        CREATE FUNCTION test_one() RETURNS SETOF text LANGUAGE plpgsql AS
            $$ BEGIN RETURN NEXT ok(true, 'inner'); RETURN NEXT is(1, 2, 'wrong'); END $$;
        CREATE FUNCTION test_two() RETURNS SETOF text LANGUAGE sql AS $$ SELECT ok(true) $$;
        SELECT * FROM runtests('^test_');
        """
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*not ok 1 - *test_one", "*not ok 2 - wrong"])


def test_tap() -> None:
    tap = Tap()
    tap.feed("ok 1 - a \\# b\\\\c\n    ok 1\nnot ok\nnot ok 3 # todo later", 7)
    tap.feed("ok 4 foo # SKIP\nokay\n# x\n1..4", 8)
    assert [(a.number, a.passed, a.description, a.directive) for a in tap.assertions] == [
        (1, True, "a # b\\c", None),
        (2, False, "", None),
        (3, False, "", "todo"),
        (4, True, "foo", "skip"),
    ]
    assert tap.assertions[1].diagnostics == ["    ok 1"]
    assert tap.assertions[3].diagnostics == ["# x"]
    assert tap.verdict() == []


def test_statements() -> None:
    script = r"""-- one;
    SELECT 'a;', E'\';', "b;", $$;$$, $x$ ; $$ $x$ /* ; /* */ ; */;;
    \set QUIET
    CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; END;
    CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2); BEGIN; SELECT a$b$c;
    SELECT 'open;"""
    found = [(line, text[:12], text[-6:]) for line, text in statements(script)]
    assert found == [
        (2, "SELECT 'a;',", "/ ; */"),
        (3, "\\set QUIET", " QUIET"),
        (4, "CREATE FUNCT", "D; END"),
        (5, "CREATE RULE ", "ECT 2)"),
        (5, "BEGIN", "BEGIN"),
        (5, "SELECT a$b$c", " a$b$c"),
        (6, "SELECT 'open", "'open;"),
    ]
