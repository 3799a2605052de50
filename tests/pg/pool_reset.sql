-- What a session that a pool hands out is like: as a fresh one, in which this passes, too.
-- tests/pg/test_pool_reset.py leaves sessions in every kind of mess before. A transaction each.
SELECT plan(18);

SELECT ok(pg_current_xact_id_if_assigned() IS NULL, 'no transaction is open that has written');
SELECT is(current_setting('transaction_isolation'), 'read committed', 'transactions see what is new');
SELECT is(current_setting('transaction_read_only'), 'off', 'and may write');
SELECT is(current_setting('transaction_deferrable'), 'off', 'and do not wait for their snapshot');

SELECT is_empty($$
    SELECT name, setting, reset_val FROM pg_settings
     WHERE source = 'session' AND setting IS DISTINCT FROM reset_val AND name !~ '^transaction_'
$$, 'no setting has a value of the session''s own');
SELECT is(current_setting('search_path'), '"$user", public', 'names are found where they were');
SELECT is(current_setting('statement_timeout'), '0', 'statements have no limit');
SELECT is(current_setting('session_replication_role'), 'origin', 'triggers fire');
SELECT is(coalesce(current_setting('gio.tenant', true), ''), '', 'settings of one''s own are empty');

SELECT is(current_setting('role'), 'none', 'no role was set');
SELECT is(current_user, session_user, 'who asks is who is connected');
SELECT ok((SELECT rolsuper FROM pg_roles WHERE rolname = session_user), 'and that is who it was');

SELECT is_empty($$
    SELECT relname FROM pg_class
     WHERE relnamespace = pg_my_temp_schema() AND relname !~ '^(__t|idx)' -- pgTAP has some itself
$$, 'no temporary table, view or sequence');
SELECT is_empty($$ SELECT name FROM pg_prepared_statements WHERE from_sql $$, 'nothing by PREPARE');
SELECT is_empty($$ SELECT name FROM pg_cursors WHERE is_holdable $$, 'no cursor is open');
SELECT is_empty($$
    SELECT classid, objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
$$, 'no advisory lock is held');
SELECT is_empty($$ SELECT pg_listening_channels() $$, 'nothing is listened to');
SELECT throws_ok($$ SELECT currval('gio_numbers') $$, '55000', NULL, 'currval() is nobody''s');

SELECT * FROM finish();
