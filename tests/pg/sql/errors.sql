-- Each error by its SQLSTATE and text, and where it has a hint.
\set VERBOSITY verbose
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS mixtral;
CREATE FUNCTION outcome(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    state text; message text; detail text; hint text;
BEGIN
    EXECUTE statement;
    RETURN 'no error';
EXCEPTION WHEN OTHERS OR query_canceled THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RETURN concat_ws(' | ', state, message, NULLIF(detail, ''), NULLIF(hint, ''));
END
$$;
\pset tuples_only on
\pset format unaligned

SELECT outcome($$SELECT mixtral_chat('hi', temperature => 200)$$);
SELECT outcome($$SELECT mixtral_chat('hi', temperature => 'NaN')$$);
SELECT outcome($$SELECT mixtral_chat('hi', top_p => 'Infinity')$$);
SELECT outcome($$SELECT mixtral_chat('hi', max_tokens => 0)$$);
SELECT outcome($$SELECT mixtral_chat('hi', '{"nonsense": 1}')$$);
SELECT outcome($$SELECT mixtral_chat('hi', '{"stop": [1]}')$$);
SELECT outcome($$SELECT mixtral_chat('hi', stop => ARRAY['a', NULL])$$);
SELECT outcome($$SELECT mixtral_chat('hi', '[1]')$$);
SELECT outcome($$SELECT mixtral_chat('hi', '{"n": 2}')$$);
SELECT outcome($$SELECT mixtral_stream('hi', '{"logprobs": true}')$$);
SELECT outcome($$SELECT mixtral_chat('hi', '{"tenant": 1}')$$);
SELECT outcome($$SELECT mixtral_chat('hi', '{"json_schema": {}}')$$);
SELECT outcome($$SELECT mixtral_chat('hi', model => 'nobody')$$) LIKE '42704 | option model: "nobody" is not open here; %';
SELECT outcome($$SELECT mixtral_chat('{"role": "user"}'::jsonb)$$);
SELECT outcome($$SELECT mixtral_chat('[{"role": "robot", "content": "hi"}]'::jsonb)$$);
SELECT outcome($$SELECT mixtral_chat('[]'::jsonb)$$);
SELECT outcome($$SELECT mixtral_complete('hi', '{"system": "x"}')$$);
SELECT outcome($$SELECT mixtral_embed('hi', '{"max_tokens": 1}')$$);
SELECT outcome($$SELECT mixtral_detokenize('{1,NULL}')$$);
SELECT outcome($$SELECT mixtral_detokenize('{-1}')$$);
SELECT outcome($$SELECT count(*) FROM mixtral_chunks('hi', 0)$$);
SELECT outcome($$SELECT count(*) FROM mixtral_chunks('hi', 4, 4)$$);
SELECT outcome($$SELECT count(*) FROM mixtral_chunks('hi', NULL)$$);
SELECT regexp_replace(outcome($$SELECT mixtral_chat(repeat('long ', 3000))$$), '\d{4,}', 'N', 'g');
SELECT outcome($$SELECT mixtral_chat(repeat('x', 17 * 1024 * 1024))$$) ~ '^54000 \| the request has \d+ bytes; at most 16777216 go over the socket$';
SELECT outcome($$SELECT mixtral_chat_batch(ARRAY['hi'], '{"nonsense": 1}')$$);

-- sessions
SELECT outcome($$SELECT mixtral_session_save('x.session', 'session.key', 'hi')$$);
SELECT outcome($$SELECT mixtral_session_save('/nowhere/x.session', 'nowhere.key', 'hi')$$);
SELECT regexp_replace(outcome($$SELECT mixtral_session_save('/nowhere/x.session', 'PG_VERSION', 'hi')$$), '\.[0-9a-f]{8}"', '.N"');
SELECT outcome($$SELECT mixtral_session_save('/dev/null', 'PG_VERSION', 'hi')$$);
SELECT outcome($$SELECT mixtral_session_save('/', 'PG_VERSION', 'hi')$$);
SELECT outcome($$SELECT mixtral_session_save('/' || repeat('x', 1015), 'PG_VERSION', 'hi')$$);
SELECT outcome($$SELECT mixtral_session_save(current_setting('data_directory') || '/x.session', 'PG_VERSION', repeat('long ', 100))$$);
SELECT outcome($$SELECT mixtral_session_save(current_setting('data_directory') || '/x.session', 'PG_VERSION', 'hi', '{"max_tokens": 1}')$$);
SELECT outcome($$SELECT mixtral_session_load('nowhere.session', 'PG_VERSION')$$);
SELECT outcome($$SELECT mixtral_session_load('PG_VERSION', 'nowhere.key')$$);
SELECT outcome($$SELECT mixtral_session_load('base', 'PG_VERSION')$$);
SELECT outcome($$SELECT mixtral_session_load('PG_VERSION', 'PG_VERSION', '{"system": "x"}')$$);
SELECT outcome($$SELECT mixtral_session_load('PG_VERSION', 'PG_VERSION', model => 'nobody')$$) LIKE '42704 | option model: "nobody" is not open here; %';
SELECT count(*) FROM pg_ls_dir('.') AS name WHERE name LIKE 'x.session%';

-- limits
SET mixtral.max_tokens_limit = 10;
SELECT outcome($$SELECT mixtral_chat('hi', max_tokens => 11)$$);
SELECT outcome($$SELECT mixtral_chat('hi', '{"max_tokens": 11}')$$);
SELECT outcome($$SELECT mixtral_chat('hi', '{"max_tokens": 11}', max_tokens => 10)$$);
SELECT completion_tokens FROM mixtral_generate('hi', '{"ignore_eos": true}');
RESET mixtral.max_tokens_limit;
SET mixtral.timeout = '1ms';
SELECT outcome($$SELECT mixtral_chat('hi', '{"ignore_eos": true}', max_tokens => 900)$$);
SELECT outcome($$SELECT mixtral_chat('hi', '{"ignore_eos": true, "timeout_ms": 60000}', max_tokens => 900)$$);
RESET mixtral.timeout;
SELECT outcome($$SELECT mixtral_chat('hi', '{"ignore_eos": true, "timeout_ms": 1}', max_tokens => 900)$$);

-- settings
SELECT outcome($$SET mixtral.nonsense = 1$$);
SELECT outcome($$SET mixtral.model = '/etc/passwd'$$);
SELECT outcome($$SET mixtral.default_top_p = 2$$);
SELECT name, context, vartype, unit, min_val, max_val FROM pg_settings WHERE name LIKE 'mixtral.%' ORDER BY name;
SELECT count(*) FROM pg_settings WHERE name LIKE 'mixtral.%' AND short_desc = '';

-- and the session goes on
SELECT mixtral_chat('hi', max_tokens => 2) IS NOT NULL;
DROP FUNCTION outcome;
