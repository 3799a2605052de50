"""The pytest plugin: green tests and fixtures, beside other plugins, and the blocking detector."""

import textwrap
from collections.abc import Callable

import pytest
from fix_postgres import Query

Pytester = pytest.Pytester
RunTests = Callable[..., pytest.RunResult]

PRELUDE = """
import asyncio, contextvars, threading, time, unittest
import pytest
import greenletio
from greenletio import await_, sleep, spawn
from greenletio.green import threading as green

def in_loop():
    try:
        return asyncio.get_running_loop() is not None
    except RuntimeError:
        return False
"""


@pytest.fixture
def run_tests(pytester: Pytester) -> RunTests:
    """Writes a file of tests, and runs pytest on it; `alone` in a process of its own."""

    def run_tests(
        source: str, *options: str, ini: str = "", alone: bool = False
    ) -> pytest.RunResult:
        if ini:
            pytester.makeini(f"[pytest]\n{ini}")
        pytester.makepyfile(PRELUDE + textwrap.dedent(source))
        if alone:
            return pytester.runpytest_subprocess("-rA", *options)
        return pytester.runpytest_inprocess("-rA", "-p", "no:asyncio", *options)

    return run_tests


def test_a_marked_test_and_its_fixtures_run_green(run_tests: RunTests) -> None:
    result = run_tests(
        """
        variable = contextvars.ContextVar("variable")
        local = green.local()
        said = []

        @pytest.fixture(scope="module")
        def server():
            beats = []
            def beat():
                while True:
                    sleep(0.001)
                    beats.append(1)
            green = spawn(beat)
            yield beats
            assert in_loop()
            green.kill()

        @pytest.fixture
        def fixture(request):
            token = variable.set("set")
            local.value = "here"
            sleep(0.001)
            request.addfinalizer(lambda: said.append("finalized"))
            yield spawn(lambda: sleep(0.001) or variable.get())
            sleep(0.001)
            variable.reset(token)
            said.append("ended")

        class TestMethods:
            def setup_method(self):
                self.loop = asyncio.get_running_loop()

            @pytest.fixture
            def own(self):
                self.made = True
                sleep(0)

            @pytest.mark.greenletio
            @pytest.mark.parametrize("n", [1, 2])
            def test_green(self, own, fixture, server, n, tmp_path):
                assert self.made and self.loop is asyncio.get_running_loop()
                assert (variable.get(), local.value) == ("set", "here")
                assert fixture.get() == "set"
                assert green.current_thread() is green.main_thread()
                count = len(server)
                while len(server) == count:
                    sleep(0.001)
                assert await_(asyncio.sleep(0, 5)) == 5
                assert asyncio.run(asyncio.sleep(0, 6)) == 6

        @pytest.mark.greenletio
        class TestCase(unittest.TestCase):
            def setUp(self):
                assert in_loop()
            def test_green(self):
                assert in_loop()

        def test_plain():
            assert not in_loop()
            assert said == ["ended", "finalized"] * 2
        """
    )
    result.assert_outcomes(passed=4)


def test_all_tests_by_the_option_or_the_configuration(run_tests: RunTests) -> None:
    source = """
        def test_green():
            assert in_loop()
        @pytest.mark.greenletio(False)
        def test_plain():
            assert not in_loop()
        """
    run_tests(source, "--greenletio").assert_outcomes(passed=2)
    run_tests(source).assert_outcomes(passed=1, failed=1)
    run_tests(source, ini="greenletio = true").assert_outcomes(passed=2)


@pytest.mark.parametrize("name", ["asyncio", "uvloop", "greenletio:EventLoop"])
def test_the_loop_may_be_another(run_tests: RunTests, name: str) -> None:
    result = run_tests(
        f"""
        def test_it():
            kind = type(asyncio.get_running_loop())
            assert kind.__module__.startswith({name.partition(":")[0]!r})
            assert spawn(lambda: sleep(0.001) or 5).get() == 5
        """,
        "--greenletio",
        ini=f"greenletio_loop = {name}",
    )
    result.assert_outcomes(passed=1)


def test_a_loop_that_there_is_not(run_tests: RunTests) -> None:
    result = run_tests("def test_it(): pass", "--greenletio", ini="greenletio_loop = nothing:x")
    result.stdout.fnmatch_lines(["*Exit: greenletio_loop = nothing:x: No module named 'nothing'*"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_whatever_a_test_raises(run_tests: RunTests) -> None:
    result = run_tests(
        """
        def test_fails():
            sleep(0)
            assert 1 == 2
        def test_skips():
            pytest.skip("no")
        @pytest.mark.xfail(raises=StopIteration, strict=True)
        def test_xfails():
            raise StopIteration
        def test_is_cancelled():
            asyncio.current_task().cancel()
            sleep(1)
        @pytest.fixture
        def broken():
            yield
            sleep(0)
            1 / 0
        def test_errs(broken):
            pass
        def test_passes():  # with the cancellation of nobody
            asyncio.current_task().cancel()
        def test_passes_after():
            sleep(0.001)
            async def limited():
                async with greenletio_timeout(30):
                    await asyncio.sleep(0)
            greenletio_timeout = getattr(asyncio, "timeout", None)
            if greenletio_timeout is not None:
                await_(limited())
        """,
        "--greenletio",
    )
    result.assert_outcomes(passed=3, failed=2, skipped=1, xfailed=1, errors=1)
    result.stdout.fnmatch_lines(["*assert 1 == 2", "*CancelledError*", "*ZeroDivisionError*"])
    # Nothing of the plugin is in between.
    assert "_pytest.py" not in result.stdout.str().partition("test_is_cancelled")[0]


def test_what_a_test_leaves_behind_ends_with_it(run_tests: RunTests) -> None:
    result = run_tests(
        """
        ended = []
        def forever(name):
            try:
                sleep(600)
            finally:
                sleep(0.001)
                ended.append(name)

        @pytest.fixture(scope="module")
        def wide():
            spawn(forever, "wide")

        def test_leaves(wide):
            spawn(forever, "green")
            asyncio.get_running_loop().create_task(asyncio.sleep(600)).add_done_callback(
                lambda task: ended.append("task")
            )
            sleep(0.001)

        def test_next():
            assert sorted(ended) == ["green", "task"]
        """,
        "--greenletio",
        "-W",
        "error::RuntimeWarning",
    )
    result.assert_outcomes(passed=2)


def test_a_time_limit_ends_what_waits(run_tests: RunTests) -> None:
    """pytest-timeout raises in the loop, from its signal's handler: the test is what fails."""
    result = run_tests(
        """
        @pytest.mark.timeout(2)
        def test_waits():
            sleep(600)
        @pytest.mark.timeout(2)
        def test_awaits():
            await_(asyncio.sleep(600))
        @pytest.mark.timeout(2)
        def test_computes():
            while True:
                pass
        def test_goes_on():
            sleep(0.001)
            await_(asyncio.sleep(0.001))
        """,
        "--greenletio",
        alone=True,
    )
    result.assert_outcomes(passed=1, failed=3)
    for line in ("sleep(600)", "await_(asyncio.sleep(600))", "while True:"):
        result.stdout.fnmatch_lines([f"*{line}"])
    result.stdout.fnmatch_lines(["*Timeout (>2.0s)*"] * 3)


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_beside_pytest_asyncio_and_anyio(run_tests: RunTests, mode: str) -> None:
    result = run_tests(
        """
        import pytest_asyncio
        loops = set()

        @pytest_asyncio.fixture
        async def theirs():
            await asyncio.sleep(0.001)
            yield asyncio.get_running_loop()
            await asyncio.sleep(0.001)

        @pytest.fixture
        def ours():
            if in_loop():
                sleep(0.001)
            yield in_loop()
            if in_loop():
                sleep(0.001)

        @pytest.mark.asyncio
        async def test_asyncio(theirs, ours):
            assert asyncio.get_running_loop() is theirs and not ours
            await greenletio.async_(sleep)(0.001)

        def test_green(theirs, ours):
            assert ours and asyncio.get_running_loop() is not theirs

        @pytest.fixture
        def anyio_backend():
            return "asyncio"

        @pytest.fixture
        async def anyios(anyio_backend):
            await asyncio.sleep(0.001)
            yield asyncio.get_running_loop()

        @pytest.mark.anyio
        async def test_anyio(anyios, ours):
            assert asyncio.get_running_loop() is anyios and not ours

        def test_green_again(ours):
            assert ours

        class TestCase(unittest.IsolatedAsyncioTestCase):
            async def test_async(self):
                await asyncio.sleep(0)
            def test_sync(self):
                assert asyncio.run is not None
        """,
        "--greenletio",
        f"--asyncio-mode={mode}",
        *(["--deselect", "test_beside_pytest_asyncio_and_anyio.py::test_anyio"] * (mode == "auto")),
        alone=True,
    )
    result.assert_outcomes(passed=5 + (mode == "strict"), deselected=int(mode == "auto"))


def test_a_fixture_that_a_green_test_asks_for_in_its_middle(run_tests: RunTests) -> None:
    result = run_tests(
        """
        @pytest.fixture
        def late():
            sleep(0.001)
            yield asyncio.current_task()
            sleep(0.001)

        @pytest.mark.greenletio
        def test_it(request):
            assert request.getfixturevalue("late") is asyncio.current_task()
        """
    )
    result.assert_outcomes(passed=1)


def test_the_whole_run_may_be_green(pytester: Pytester) -> None:
    """`greenletio -m pytest`: there is a loop already."""
    pytester.makepyfile(
        PRELUDE
        + textwrap.dedent(
            """
            @pytest.mark.greenletio
            def test_it(tmp_path, no_blocking):
                sleep(0.001)
            """
        )
    )
    script = "from greenletio.__main__ import main; main(['-m', 'pytest', '-q'])"
    done = pytester.runpython_c(script)
    done.stdout.fnmatch_lines(["*1 passed*"])


# --- the blocking detector -----------------------------------------------------------------------

BLOCKS = """
    import pytest_asyncio  # noqa

    def deep():
        time.sleep(0.8)  # the line

    @pytest.mark.greenletio
    def test_green_blocks(no_blocking):
        sleep(0.01)
        deep()

    @pytest.mark.greenletio
    def test_green_does_not(no_blocking):
        sleep(0.8)

    @pytest.mark.asyncio
    async def test_task_blocks(no_blocking):
        await asyncio.sleep(0.01)
        deep()

    @pytest.mark.asyncio
    async def test_task_does_not(no_blocking):
        await asyncio.sleep(0.8)

    @pytest.mark.anyio
    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_anyio_blocks(no_blocking, anyio_backend):
        deep()
    """


def test_what_holds_the_loop_fails_the_test_with_its_line(run_tests: RunTests) -> None:
    result = run_tests(BLOCKS, ini="greenletio_blocking_threshold = 0.4", alone=True)
    result.assert_outcomes(passed=2, failed=3)
    line = (PRELUDE + textwrap.dedent(BLOCKS)).splitlines().index("    time.sleep(0.8)  # the line")
    for name in ("test_green_blocks", "test_task_blocks", "test_anyio_blocks"):
        result.stdout.fnmatch_lines(
            [
                f"*_ {name}* _*",
                f"the event loop was held for * s by *, in deep (*.py:{line})",
                f'  File "*.py", line *, in {name} *',
                "    deep()",
                f'  File "*.py", line {line}, in deep *',
                "    time.sleep(0.8)  # the line",
            ]
        )
    assert "_pytest/" not in result.stdout.str()


def test_a_threshold_of_its_own(run_tests: RunTests) -> None:
    result = run_tests(
        """
        @pytest.mark.greenletio
        @pytest.mark.no_blocking(60)
        def test_patient():
            time.sleep(0.3)
        @pytest.mark.greenletio
        @pytest.mark.no_blocking(0.05)
        def test_impatient():
            time.sleep(0.3)
        @pytest.mark.greenletio
        @pytest.mark.no_blocking("x")
        def test_impossible():
            pass
        def test_without_a_loop(no_blocking):
            pass
        """
    )
    result.assert_outcomes(passed=1, failed=3)
    result.stdout.fnmatch_lines(
        [
            "*no_blocking: the threshold is a number of seconds above 0, not 'x'",
            "*no_blocking watches a loop, and this test has none*",
        ]
    )


def test_a_query_by_a_driver_that_nobody_patched(
    run_tests: RunTests, pg_dsn: str, pg_query: Query
) -> None:
    """What it is for: psycopg2 holds the loop unless it is patched."""
    result = run_tests(
        f"""
        import psycopg2

        @pytest.fixture(scope="module", params=[False, True], ids=["as it is", "patched"])
        def connection(request):
            if request.param:
                greenletio.patch_psycopg2()
            connection = psycopg2.connect({pg_dsn!r})
            yield connection
            connection.close()
            greenletio.unpatch_psycopg2()

        def query(connection):
            with connection, connection.cursor() as cursor:
                cursor.execute("SELECT pg_sleep(1)")

        @pytest.mark.greenletio
        @pytest.mark.no_blocking(0.4)
        def test_it(connection):
            query(connection)
        """
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(['    cursor.execute("SELECT pg_sleep(1)")'])
