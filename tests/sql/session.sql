-- What a session of greenletio.pg is to the server.
SELECT plan(7);
SELECT is(current_setting('client_encoding'), 'UTF8', 'text is UTF-8, whatever the environment says');
SELECT is(current_setting('application_name'), 'greenletio', 'it says who it is');
SELECT is(count(*), 0::bigint, 'it opens no cursors by itself') FROM pg_cursors WHERE name <> '';
SELECT is(
    (SELECT setting FROM pg_settings WHERE name = 'search_path' AND source = 'session'),
    NULL,
    'it leaves the search path alone'
);
SELECT is(
    ARRAY(
        SELECT name::text FROM pg_settings
        WHERE source = 'session' AND name NOT IN ('client_min_messages', 'is_superuser', 'role')
    ),
    '{}',
    'it changes no setting of its own accord'
);
SELECT cmp_ok(count(*), '<=', 100::bigint, 'prepared statements are bounded') FROM pg_prepared_statements;
SELECT is(
    (SELECT count(*) FROM pg_prepared_statements WHERE name <> '' AND name !~ '^_?gio'),
    0::bigint,
    'its prepared statements have names of its own'
);
SELECT * FROM finish();
