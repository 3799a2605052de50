-- Values pass through the driver's session as they are: each is sent to a table by SQL and compared there.
BEGIN;
SELECT * FROM no_plan();
CREATE TEMP TABLE kept (t text, j jsonb, n numeric, f float8, b bytea, ts timestamptz, r int4range);
INSERT INTO kept VALUES (
    'naïve 🐘 \', '{"a": [1, null]}', 'NaN', '-Infinity', '\x00ff', 'infinity', 'empty'
);
SELECT is(t, 'naïve 🐘 \', 'text beyond ASCII, and a backslash') FROM kept;
SELECT is(octet_length(t), 13, 'as bytes of UTF-8') FROM kept;
SELECT is(j #>> '{a,0}', '1', 'jsonb') FROM kept;
SELECT is(n, 'NaN', 'numeric NaN') FROM kept;
SELECT is(f, '-Infinity', 'float8 -Infinity') FROM kept;
SELECT is(b, '\x00ff', 'bytea with a zero byte') FROM kept;
SELECT is(ts, 'infinity', 'timestamptz infinity') FROM kept;
SELECT ok(isempty(r), 'an empty range') FROM kept;
SELECT results_eq(
    $$ SELECT array_agg(i ORDER BY i) FROM generate_series(1, 3) AS i; $$,
    $$ VALUES ('{1,2,3}'::int[]) $$,
    'a query within quotes; with a semicolon'
);
SELECT throws_ok('SELECT 1 / 0', '22012', NULL, 'an error that is caught leaves the session usable');
SELECT * FROM finish();
ROLLBACK;
