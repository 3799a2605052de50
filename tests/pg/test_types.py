"""Values of each type: sent as binary, compared with the server's own text, and read back."""

import datetime
import ipaddress
import math
import struct
import uuid
from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from greenletio import _pg, pg
from greenletio.pg import Range, _text, _types, errors

UTC = datetime.timezone.utc
SECONDS = 16 * 3600 - 1  # how far the server lets a time zone be from UTC


@pytest.fixture(scope="module")
def raw(dsn):
    """A connection as it is, without a face."""
    c = pg.connect(dsn)
    c.raw._codecs.clear()
    yield c.raw
    c.close()


def float4(value):
    return struct.unpack("f", struct.pack("f", value))[0]


text = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)))
numeric = st.decimals(allow_nan=False, allow_infinity=False).filter(
    lambda d: -1000 < d.adjusted() < 1000 and d.as_tuple().exponent > -1000
)
# The server's years go further back than Python's; the very ends are its infinities.
dates = st.dates(datetime.date(1, 1, 2), datetime.date(9999, 12, 30))
moments = st.datetimes(datetime.datetime(1, 1, 2), datetime.datetime(9999, 12, 30))
offsets = st.integers(-SECONDS, SECONDS).map(
    lambda seconds: datetime.timezone(datetime.timedelta(seconds=seconds))
)
days = 100_000_000
intervals = st.timedeltas(datetime.timedelta(-days), datetime.timedelta(days))

SCALARS = {
    "bool": st.booleans(),
    "int2": st.integers(-(2**15), 2**15 - 1),
    "int4": st.integers(-(2**31), 2**31 - 1),
    "int8": st.integers(-(2**63), 2**63 - 1),
    "oid": st.integers(0, 2**32 - 1),
    "float4": st.floats(width=32, allow_nan=False),
    "float8": st.floats(allow_nan=False),
    "numeric": numeric | st.sampled_from([Decimal("Infinity"), Decimal("-Infinity")]),
    "text": text,
    "varchar": text,
    "bytea": st.binary(),
    "uuid": st.uuids(),
    "date": dates | st.sampled_from([datetime.date.min, datetime.date.max]),
    "time": st.times(),
    "timetz": st.times(timezones=offsets),
    "timestamp": moments | st.sampled_from([datetime.datetime.min, datetime.datetime.max]),
    "timestamptz": st.datetimes(
        datetime.datetime(1, 1, 3), datetime.datetime(9999, 12, 29), timezones=offsets
    ),
    "interval": intervals,
    "xid8": st.integers(0, 2**64 - 1),
    "tid": st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1)),
}


# Hypothesis keeps what it has tried.
given_again = pytest.mark.leaks(False)


@given_again
@pytest.mark.parametrize("name", SCALARS)
def test_round_trip(raw, name):
    by_name = {codec.name: codec for codec in _pg.BUILTIN.values()}

    @settings(max_examples=60)
    @given(SCALARS[name])
    def check(value):
        query = f"SELECT $1::{name}, $1::{name}::text, $1::{name}::text::{name}, $2::{name}[]"
        back, shown, parsed, many = raw.fetchrow(query, value, [value, None]).run()
        assert back == value
        assert type(back) is type(value)
        assert parsed == value
        shown = shown[0] if name == "bool" else shown
        assert _text.decode(by_name[name], shown) == value
        assert many == [value, None]
        if isinstance(value, datetime.time | datetime.datetime):
            assert (back.tzinfo is None) == (value.tzinfo is None)

    check()


@given_again
@settings(max_examples=60)
@given(digits=st.integers(0, 10**40), scale=st.integers(-5, 60), negative=st.booleans())
@example(digits=0, scale=3, negative=True)
@example(digits=10000, scale=4, negative=False)
def test_numeric_keeps_its_scale(raw, digits, scale, negative):
    value = Decimal((negative, tuple(map(int, str(digits))), -scale))
    back, shown = raw.fetchrow("SELECT $1::numeric, $1::numeric::text", value).run()
    assert (back, format(back, "f")) == (value, shown)
    assert -back.as_tuple().exponent == max(scale, 0)


def test_what_a_numeric_takes_and_refuses(raw):
    def back(value):
        return raw.fetchval("SELECT $1::numeric", value).run()

    assert back(5) == 5
    assert back("1e3") == 1000
    assert back(0.5) == Decimal("0.5")
    assert back(Decimal("NaN")).is_nan()
    assert back(Decimal("9" * 20000)) == Decimal("9" * 20000)
    for bad in (Decimal("1e200000"), Decimal("1e-20000"), Decimal("1e999999999"), "x", object()):
        with pytest.raises(errors.DataError):
            back(bad)


def test_nan_and_the_floats_that_do_not_fit(raw):
    assert math.isnan(raw.fetchval("SELECT $1::float8", math.nan).run())
    assert math.isnan(raw.fetchval("SELECT $1::float4", math.nan).run())
    assert raw.fetchval("SELECT $1::float4", 0.1).run() == float4(0.1)
    with pytest.raises(errors.DataError, match="float32"):
        raw.fetchval("SELECT $1::float4", 1e300).run()


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("'infinity'::date", datetime.date.max),
        ("'-infinity'::date", datetime.date.min),
        ("'infinity'::timestamp", datetime.datetime.max),
        ("'-infinity'::timestamp", datetime.datetime.min),
        ("'infinity'::timestamptz", datetime.datetime.max.replace(tzinfo=UTC)),
        (
            "'2024-02-29 12:00:00+05:30'::timestamptz",
            datetime.datetime(2024, 2, 29, 6, 30, tzinfo=UTC),
        ),
        ("'24:00'::time", datetime.time(0)),
        ("'1 year 2 mons 3 days 04:05:06.789'::interval", datetime.timedelta(428, 14706, 789000)),
        ("'-1 mons +2 days -00:00:01'::interval", datetime.timedelta(-28, -1)),
        ("NULL::int", None),
        ("''::text", ""),
        ("'a'::\"char\"", b"a"),
        ("'abc'::bpchar(5)", "abc  "),
        ("'x'::name", "x"),
        ("'{\"a\": 1}'::json", '{"a": 1}'),
        ("'{\"a\": 1}'::jsonb", '{"a": 1}'),
        ("'$.a'::jsonpath", '$."a"'),
        ("'{}'::int[]", []),
        ("'{{1,2},{3,NULL}}'::int[]", [[1, 2], [3, None]]),
        ("'[5:6]={1,2}'::int[]", [1, 2]),
        ("ARRAY['a,b', '\"', NULL, 'NULL', '']", ["a,b", '"', None, "NULL", ""]),
        ("int4range(1, 5)", Range(1, 5)),
        ("'empty'::int4range", Range(empty=True)),
        ("numrange(NULL, 1.5, '(]')", Range(None, Decimal("1.5"), upper_inc=True)),
        ("daterange('2024-01-01', NULL)", Range(datetime.date(2024, 1, 1), None)),
        ("'{[1,2),[5,7)}'::int4multirange", [Range(1, 2), Range(5, 7)]),
        ("ARRAY[int8range(1, 2)]", [Range(1, 2)]),
        ("'pg_type'::regclass", "pg_type"),
        ("'192.168.0.1'::inet", ipaddress.ip_address("192.168.0.1")),
        ("'192.168.0.1/24'::inet", ipaddress.ip_interface("192.168.0.1/24")),
        ("'::1/64'::inet", ipaddress.ip_interface("::1/64")),
        ("'10.0.0.0/8'::cidr", ipaddress.ip_network("10.0.0.0/8")),
        ("'08:00:2b:01:02:03'::macaddr", "08:00:2b:01:02:03"),
        ("'08:00:2b:01:02:03:04:05'::macaddr8", "08:00:2b:01:02:03:04:05"),
        ("B'101'", pg.BitString("101")),
        ("B''::varbit", pg.BitString()),
        ("point(1, 2.5)", pg.Point(1, 2.5)),
        ("'{1,2,3}'::line", pg.Line(1, 2, 3)),
        ("'((1,2),(3,4))'::lseg", pg.LineSegment(pg.Point(1, 2), pg.Point(3, 4))),
        ("'((1,2),(3,4))'::box", pg.Box(pg.Point(3, 4), pg.Point(1, 2))),
        ("'[(1,2),(3,4)]'::path", pg.Path((1, 2), (3, 4))),
        ("'((1,2),(3,4),(0,0))'::polygon", pg.Polygon((1, 2), (3, 4), (0, 0))),
        ("'<(1,2),3>'::circle", pg.Circle(pg.Point(1, 2), 3)),
        ("ROW(1, 'a', NULL, ARRAY[2.5])", (1, "a", None, [Decimal("2.5")])),
        ("'a:1A b:2'::tsvector", "'a':1A 'b':2"),
        ("'a & b'::tsquery", "'a' & 'b'"),
    ],
)
def test_what_the_server_has(raw, sql, value):
    assert raw.fetchval(f"SELECT {sql}").run() == value
    if "range" not in sql and not sql.startswith("ROW"):
        # And as text, since a column of this result has no binary form.
        row = raw.fetchrow(f"SELECT {sql}, relacl FROM pg_class LIMIT 1").run()
        assert row[0] == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inet", ipaddress.ip_address("10.1.2.3")),
        ("inet", ipaddress.ip_interface("10.1.2.3/8")),
        ("inet", "::1"),
        ("cidr", ipaddress.ip_network("10.0.0.0/8")),
        ("macaddr", "08-00-2b-01-02-03"),
        ("macaddr8", "08002b0102030405"),
        ("bit(3)", pg.BitString("101")),
        ("varbit", pg.BitString("1" * 17)),
        ("varbit", pg.BitString()),
        ("point", pg.Point(0.1, -2)),
        ("line", pg.Line(1, 2, 3)),
        ("lseg", pg.LineSegment(pg.Point(1, 2), pg.Point(3, 4))),
        ("box", pg.Box(pg.Point(3, 4), pg.Point(1, 2))),
        ("path", pg.Path((1, 2), (3, 4), is_closed=True)),
        ("path", pg.Path((1, 2), (3, 4))),
        ("polygon", pg.Polygon((1, 2), (3, 4), (0, 0))),
        ("circle", pg.Circle(pg.Point(1, 2), 3)),
    ],
)
def test_seldom_types(raw, name, value):
    back, parsed, many = raw.fetchrow(
        f"SELECT $1::{name}, $1::{name}::text::{name}, $2::{name}[]", value, [value, None]
    ).run()
    assert parsed == back
    assert many == [back, None]
    if not isinstance(value, str):
        assert (back, type(back)) == (value, type(value))


def test_extensions_of_the_server(raw):
    raw.execute("CREATE EXTENSION IF NOT EXISTS hstore").run()
    raw.execute("CREATE EXTENSION IF NOT EXISTS citext").run()
    value = {"a": "1", "b c": None, "": 'x"y'}
    query = "SELECT $1::hstore, $1::hstore::text::hstore, $2::citext, $1::hstore -> 'a'"
    assert raw.fetchrow(query, value, "Ab").run() == (value, value, "Ab", "1")


@pytest.mark.parametrize(
    "sql",
    ["'0044-03-15 BC'::date", "'10000-01-01'::timestamp", "'10000-01-01'::timestamptz"],
)
def test_what_python_has_no_date_for(raw, sql):
    with pytest.raises(errors.DataError, match="years 1 to 9999"):
        raw.fetchval(f"SELECT {sql}").run()
    assert raw.fetchval("SELECT 1").run() == 1


def test_an_interval_that_is_too_long_for_a_timedelta(raw):
    with pytest.raises(errors.DataError, match="too long"):
        raw.fetchval("SELECT '178000000 years'::interval").run()


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("bool", 1),
        ("int4", "1"),
        ("int4", True),
        ("int4", 1.5),
        ("int4", float("nan")),
        ("int8", 2**63),
        ("oid", -1),
        ("text", 1),
        ("text", "\ud800"),
        ("bytea", "x"),
        ("uuid", 5),
        ("uuid", "x"),
        ("date", "2024-01-01"),
        ("time", datetime.date(2024, 1, 1)),
        ("timetz", datetime.time(1)),
        ("timestamp", datetime.datetime(2024, 1, 1, tzinfo=UTC)),
        ("interval", 5),
        ("int4[]", "x"),
        ("int4[]", 5),
        ("int4[]", [1, [2]]),
        ("int4[]", [[1], 2]),
        ("int4[]", [[1], [2, 3]]),
        ("int4[]", [[[[[[[1]]]]]]]),
        ("int4range", 5),
        ("int4range", Range("a", "b")),
        ("jsonb", {"a": 1}),
    ],
)
def test_what_a_type_refuses(raw, name, bad):
    with pytest.raises(errors.DataError, match=r"query argument \$1"):
        raw.fetchval(f"SELECT $1::{name}", bad).run()
    assert raw.fetchval("SELECT 1").run() == 1


def test_uuids_are_whole(raw):
    value = raw.fetchval("SELECT '12345678-1234-5678-1234-567812345678'::uuid").run()
    assert type(value) is uuid.UUID
    assert value.is_safe is uuid.SafeUUID.unknown
    assert hash(value) == hash(uuid.UUID(str(value)))
    assert raw.fetchval("SELECT $1::uuid", str(value)).run() == value


@given_again
@settings(max_examples=60)
@given(
    st.one_of(
        st.lists(st.none() | st.integers(-5, 5), min_size=1),
        st.integers(0, 3).flatmap(
            lambda n: st.lists(
                st.lists(st.none() | st.integers(-5, 5), min_size=n + 1, max_size=n + 1),
                min_size=1,
            )
        ),
    )
)
def test_arrays(raw, value):
    back, shown = raw.fetchrow("SELECT $1::int[], $1::int[]::text", value).run()
    assert back == value
    assert shown == str(value).replace("None", "NULL").replace(" ", "").translate(
        str.maketrans("[]", "{}")
    )


bounds = st.none() | st.integers(-1000, 1000).map(Decimal)


@given_again
@settings(max_examples=60)
@given(bounds, bounds, st.booleans(), st.booleans())
def test_ranges(raw, lower, upper, lower_inc, upper_inc):
    if lower is not None and upper is not None and lower > upper:
        lower, upper = upper, lower
    value = Range(lower, upper, lower_inc, upper_inc)
    query = "SELECT $1::numrange, $1::numrange::text, ($1::numrange)::text::numrange"
    back, shown, parsed = raw.fetchrow(query, value).run()
    if lower == upper and lower is not None and not (lower_inc and upper_inc):
        assert (back, shown) == (Range(empty=True), "empty")
    else:
        left, right = "(["[value.lower_inc], ")]"[value.upper_inc]
        parts = ("" if bound is None else str(bound) for bound in (lower, upper))
        assert (back, shown) == (value, f"{left}{','.join(parts)}{right}")
    assert parsed == back


near = st.none() | st.integers(-2, 2).map(Decimal)
few = st.tuples(near, near, st.booleans(), st.booleans()).filter(
    lambda r: None in r[:2] or r[0] <= r[1]
)


@given_again
@settings(max_examples=100)
@given(few, few)
def test_ranges_in_ranges(raw, one, other):
    query = "SELECT a, b, a <@ b FROM (SELECT $1::numrange AS a, $2::numrange AS b) AS two"
    a, b, within = raw.fetchrow(query, Range(*one), Range(*other)).run()
    assert (a.issubset(b), b.issuperset(a)) == (within, within)


@pytest.mark.parametrize("order", ["big", "little"])
@pytest.mark.parametrize("signed", [False, True])
def test_bit_strings_as_integers(order, signed):
    least = -4 if signed else 0
    for number in range(least, least + 8):
        bits = pg.BitString.from_int(number, 3, order, signed=signed)
        assert (len(bits), bits.to_int(order, signed=signed)) == (3, number)
    bits = pg.BitString("110")
    assert bits.to_int("big") == 6 and bits.to_int("little") == 3
    assert pg.BitString().to_int(order, signed=signed) == 0
    for wrong in (lambda: bits.to_int("middle"), lambda: pg.BitString.from_int(8, 3, order)):
        with pytest.raises(ValueError):
            wrong()


@pytest.fixture(scope="module")
def own_types(raw):
    raw.execute(
        "CREATE SCHEMA own;"
        "CREATE TYPE own.mood AS ENUM ('sad', 'it''s ok');"
        "CREATE DOMAIN own.positive AS int CHECK (VALUE > 0);"
        "CREATE TYPE own.pair AS (n int, gone int, t text);"
        "ALTER TYPE own.pair DROP ATTRIBUTE gone;"
        "CREATE TYPE own.nested AS (p own.pair, ps own.pair[], m own.mood, d own.positive);"
        "CREATE TYPE own.moods AS RANGE (SUBTYPE = own.mood);"
        "CREATE TABLE own.things (p own.pair, m own.mood[], d own.positive, n own.nested)"
    ).run()
    yield
    raw.execute("DROP SCHEMA own CASCADE").run()


@pytest.mark.usefixtures("own_types")
def test_enums_domains_composites_and_ranges_of_ones_own(raw, dsn):
    def back(name, value):
        return raw.fetchval(f"SELECT $1::{name}", value).run()

    assert back("own.mood", "it's ok") == "it's ok"
    assert back("own.mood[]", ["sad", None]) == ["sad", None]
    assert back("own.positive", 5) == 5
    with pytest.raises(errors.CheckViolation):
        back("own.positive", -5)
    pair = back("own.pair", (1, "one"))
    assert (pair, dict(pair)) == ((1, "one"), {"n": 1, "t": "one"})
    assert back("own.pair", {"t": "x"}) == (None, "x")
    assert back("own.pair", pair) == pair
    assert back("own.pair[]", [(1, "a"), None, (2, None)]) == [(1, "a"), None, (2, None)]
    nested = ((1, "a"), [(2, "b")], "sad", 3)
    assert back("own.nested", nested) == nested
    assert back("own.moods", Range("sad", None)) == Range("sad", None)
    assert back("own.moods", ("sad", "it's ok")).upper == "it's ok"
    with pytest.raises(errors.DataError, match="2 attributes"):
        back("own.pair", (1,))
    # What one connection has learnt another one knows.
    with pg.connect(dsn) as one:
        one.execute("SELECT '(1,x)'::own.pair")
    with pg.connect(dsn) as other:
        asked = []
        introspect = other.raw._introspect
        other.raw._introspect = lambda *args: asked.append(args) or introspect(*args)
        assert other.execute("SELECT '(1,x)'::own.pair").fetchone() == ((1, "x"),)
        assert asked == []


def test_a_type_without_a_binary_form_makes_its_result_text(raw):
    row = raw.fetchrow(
        "SELECT '=r/postgres'::aclitem AS a, 1 AS i, 1.5::numeric AS n, '\\x00ff'::bytea AS b, "
        "now() AS t, true AS y, '{1,2}'::int[] AS l, ARRAY['=r/postgres'::aclitem] AS m"
    ).run()
    assert row["a"] == "=r/postgres"
    assert row[1:4] == (1, Decimal("1.5"), b"\x00\xff")
    assert row["t"].tzinfo is UTC
    assert row[5:7] == (True, [1, 2])
    assert row["m"] == ["=r/postgres"]


@given_again
@settings(max_examples=300)
@given(st.sampled_from(sorted(_pg.BUILTIN)), st.binary(max_size=60))
def test_malformed_values_are_errors_and_no_crash(oid, data):
    codec = _pg.BUILTIN[oid]
    try:
        codec.decode(data)
    except (errors.InternalError, errors.DataError, UnicodeDecodeError, ValueError, OverflowError):
        pass


def test_a_row_that_ends_too_early_is_malformed():
    row = struct.pack("!iiii", 2, 23, 4, 7)
    with pytest.raises(errors.InternalError, match="malformed"):
        _pg.BUILTIN[2249].decode(row + bytes(2))


def test_a_catalogue_that_makes_no_sense_is_the_servers_fault():
    build = _types.builder({}, {}, {})
    to_itself = ("5", "public", "t", "b", "5", "0", None, None, None, "x")
    for row in ((None,) * 10, ("5", "public"), ("5",) + (None,) * 9, to_itself):
        with pytest.raises(errors.InternalError, match="no sense"):
            build([row], [5])


def test_arrays_are_made_of_whatever_has_a_size_but_a_mapping(raw):
    for value in ([1, 2], (1, 2), {1, 2}, frozenset([1, 2]), range(1, 3), {1: 0, 2: 0}.keys()):
        assert raw.fetchval("SELECT $1::int[]", value).run() == [1, 2]
    for value in ({1: 2}, "12", b"12", iter([1, 2]), 1):
        with pytest.raises(errors.DataError, match="sized iterable"):
            raw.fetchval("SELECT $1::int[]", value).run()


def test_users_codecs(sync):
    import json

    raw = sync.raw
    plain = _pg.BUILTIN[3802]
    raw._codecs[3802] = _pg.Codec(
        "wrapped", 3802, "jsonb", plain, decoder=json.loads, encoder=json.dumps
    )
    raw._forget_codecs()
    try:
        assert raw.fetchval("SELECT $1::jsonb", {"a": [1]}).run() == {"a": [1]}
        with pytest.raises(errors.DataError):
            raw.fetchval("SELECT $1::jsonb", object()).run()

        def use_connection(value):
            return raw.fetchval("SELECT 1").run()

        raw._codecs[3802] = _pg.Codec("wrapped", 3802, "jsonb", plain, encoder=use_connection)
        raw._forget_codecs()
        with pytest.raises(errors.DataError, match="must not use the connection"):
            raw.fetchval("SELECT $1::jsonb", {"a": [1]}, timeout=5).run()
    finally:
        raw._codecs.clear()
        raw._forget_codecs()


def test_values_leave_nothing_behind(raw, flat):
    """Some of each type, both ways."""

    def some(strategy):
        values = []

        @settings(max_examples=10)
        @given(strategy)
        def take(value):
            values.append(value)

        take()
        return values

    columns = ", ".join(f"${i}::{name}[]" for i, name in enumerate(SCALARS, 1))
    values = [some(strategy) for strategy in SCALARS.values()]
    flat(lambda: raw.fetchrow(f"SELECT {columns}", *values).run(), repeat=50)


def test_ranges_in_a_result_that_comes_as_text(sync):
    sync.execute("CREATE TYPE words AS RANGE (subtype = text)")
    row = sync.execute(
        r"""
        SELECT 'pg_class'::regclass, '[1,3)'::int4range, '(,2020-01-02]'::daterange,
            'empty'::int8range, '["a\"b,]","c)")'::words, '{[1,2),[4,)}'::int4multirange,
            '{"[1,2)",NULL}'::int4range[]
        """
    ).fetchone()
    assert row[1:] == (
        pg.Range(1, 3),
        pg.Range(None, datetime.date(2020, 1, 3)),
        pg.Range(empty=True),
        pg.Range('a"b,]', "c)"),
        [pg.Range(1, 2), pg.Range(4, None)],
        [pg.Range(1, 2), None],
    )
