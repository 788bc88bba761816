/* sql/mixtral--0.1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION mixtral" to load this file. \quit

-- None of these is STRICT: an argument that is left out is NULL. All are VOLATILE, because they ask a model, and dear, so that
-- conditions that use them are looked at last (but not so dear that a few rows set the JIT compiler going).

CREATE FUNCTION mixtral_chat(prompt text, options jsonb DEFAULT NULL, system text DEFAULT NULL,
    max_tokens int DEFAULT NULL, temperature float8 DEFAULT NULL, top_k int DEFAULT NULL, top_p float8 DEFAULT NULL,
    seed bigint DEFAULT NULL, stop text[] DEFAULT NULL, model text DEFAULT NULL)
RETURNS text
AS 'MODULE_PATHNAME', 'mixtral_chat' LANGUAGE C VOLATILE PARALLEL SAFE COST 10000;

CREATE FUNCTION mixtral_chat(messages jsonb, options jsonb DEFAULT NULL, system text DEFAULT NULL,
    max_tokens int DEFAULT NULL, temperature float8 DEFAULT NULL, top_k int DEFAULT NULL, top_p float8 DEFAULT NULL,
    seed bigint DEFAULT NULL, stop text[] DEFAULT NULL, model text DEFAULT NULL)
RETURNS text
AS 'MODULE_PATHNAME', 'mixtral_chat' LANGUAGE C VOLATILE PARALLEL SAFE COST 10000;

CREATE FUNCTION mixtral_complete(prompt text, options jsonb DEFAULT NULL,
    max_tokens int DEFAULT NULL, temperature float8 DEFAULT NULL, top_k int DEFAULT NULL, top_p float8 DEFAULT NULL,
    seed bigint DEFAULT NULL, stop text[] DEFAULT NULL, model text DEFAULT NULL)
RETURNS text
AS 'MODULE_PATHNAME', 'mixtral_complete' LANGUAGE C VOLATILE PARALLEL SAFE COST 10000;

CREATE FUNCTION mixtral_generate(prompt text, options jsonb DEFAULT NULL, system text DEFAULT NULL,
    max_tokens int DEFAULT NULL, temperature float8 DEFAULT NULL, top_k int DEFAULT NULL, top_p float8 DEFAULT NULL,
    seed bigint DEFAULT NULL, stop text[] DEFAULT NULL, model text DEFAULT NULL,
    OUT text text, OUT finish_reason text, OUT prompt_tokens int, OUT cached_tokens int, OUT completion_tokens int,
    OUT first_token_ms float8, OUT total_ms float8, OUT seed bigint, OUT model text, OUT choices jsonb)
AS 'MODULE_PATHNAME', 'mixtral_generate' LANGUAGE C VOLATILE PARALLEL SAFE COST 10000;

CREATE FUNCTION mixtral_generate(messages jsonb, options jsonb DEFAULT NULL, system text DEFAULT NULL,
    max_tokens int DEFAULT NULL, temperature float8 DEFAULT NULL, top_k int DEFAULT NULL, top_p float8 DEFAULT NULL,
    seed bigint DEFAULT NULL, stop text[] DEFAULT NULL, model text DEFAULT NULL,
    OUT text text, OUT finish_reason text, OUT prompt_tokens int, OUT cached_tokens int, OUT completion_tokens int,
    OUT first_token_ms float8, OUT total_ms float8, OUT seed bigint, OUT model text, OUT choices jsonb)
AS 'MODULE_PATHNAME', 'mixtral_generate' LANGUAGE C VOLATILE PARALLEL SAFE COST 10000;

-- In the select list (SELECT mixtral_stream('...')) a row comes as soon as the piece is made. In FROM nothing streams.
CREATE FUNCTION mixtral_stream(prompt text, options jsonb DEFAULT NULL, system text DEFAULT NULL,
    max_tokens int DEFAULT NULL, temperature float8 DEFAULT NULL, top_k int DEFAULT NULL, top_p float8 DEFAULT NULL,
    seed bigint DEFAULT NULL, stop text[] DEFAULT NULL, model text DEFAULT NULL)
RETURNS SETOF text
AS 'MODULE_PATHNAME', 'mixtral_stream' LANGUAGE C VOLATILE PARALLEL SAFE COST 10000 ROWS 100;

CREATE FUNCTION mixtral_stream(messages jsonb, options jsonb DEFAULT NULL, system text DEFAULT NULL,
    max_tokens int DEFAULT NULL, temperature float8 DEFAULT NULL, top_k int DEFAULT NULL, top_p float8 DEFAULT NULL,
    seed bigint DEFAULT NULL, stop text[] DEFAULT NULL, model text DEFAULT NULL)
RETURNS SETOF text
AS 'MODULE_PATHNAME', 'mixtral_stream' LANGUAGE C VOLATILE PARALLEL SAFE COST 10000 ROWS 100;

-- A row for each prompt, in their order. error says why there is no text: too long, or out of time.
CREATE FUNCTION mixtral_chat_batch(prompts text[], options jsonb DEFAULT NULL, system text DEFAULT NULL,
    max_tokens int DEFAULT NULL, temperature float8 DEFAULT NULL, top_k int DEFAULT NULL, top_p float8 DEFAULT NULL,
    seed bigint DEFAULT NULL, stop text[] DEFAULT NULL, model text DEFAULT NULL)
RETURNS TABLE(ordinal int, error text, text text, finish_reason text, prompt_tokens int, cached_tokens int,
    completion_tokens int, first_token_ms float8, total_ms float8, seed bigint, model text, choices jsonb)
AS 'MODULE_PATHNAME', 'mixtral_chat_batch' LANGUAGE C VOLATILE PARALLEL SAFE COST 10000 ROWS 100;

-- A vector of length 1.
CREATE FUNCTION mixtral_embed(input text, options jsonb DEFAULT NULL)
RETURNS real[]
AS 'MODULE_PATHNAME', 'mixtral_embed' LANGUAGE C VOLATILE PARALLEL SAFE COST 5000;

CREATE FUNCTION mixtral_tokenize(input text, options jsonb DEFAULT NULL)
RETURNS int[]
AS 'MODULE_PATHNAME', 'mixtral_tokenize' LANGUAGE C VOLATILE PARALLEL SAFE COST 1000;

CREATE FUNCTION mixtral_detokenize(tokens int[], options jsonb DEFAULT NULL)
RETURNS text
AS 'MODULE_PATHNAME', 'mixtral_detokenize' LANGUAGE C VOLATILE PARALLEL SAFE COST 1000;

CREATE FUNCTION mixtral_token_count(input text, options jsonb DEFAULT NULL)
RETURNS int
AS 'MODULE_PATHNAME', 'mixtral_token_count' LANGUAGE C VOLATILE PARALLEL SAFE COST 1000;

-- Pieces of at most size tokens; start and end count bytes of the text in UTF-8.
CREATE FUNCTION mixtral_chunks(input text, size int, overlap int DEFAULT 0, options jsonb DEFAULT NULL)
RETURNS TABLE(text text, start int, "end" int, tokens int)
AS 'MODULE_PATHNAME', 'mixtral_chunks' LANGUAGE C VOLATILE PARALLEL SAFE COST 1000 ROWS 10;

-- What the model has computed of a conversation, saved to a file of the server and loaded again: of requests that begin with it
-- nothing is read twice. The key file has 32 secret bytes. Both give the number of tokens, and are for members of
-- pg_read_server_files (and of pg_write_server_files, to save) who have been granted EXECUTE.
CREATE FUNCTION mixtral_session_save(path text, key_path text, prompt text, options jsonb DEFAULT NULL,
    system text DEFAULT NULL, model text DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME', 'mixtral_session_save' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 10000;

CREATE FUNCTION mixtral_session_save(path text, key_path text, messages jsonb, options jsonb DEFAULT NULL,
    system text DEFAULT NULL, model text DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME', 'mixtral_session_save' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 10000;

CREATE FUNCTION mixtral_session_load(path text, key_path text, options jsonb DEFAULT NULL, model text DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME', 'mixtral_session_load' LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 10000;

CREATE FUNCTION mixtral_version()
RETURNS text
AS 'MODULE_PATHNAME', 'mixtral_version' LANGUAGE C IMMUTABLE PARALLEL SAFE;

-- What follows starts no engine.

CREATE FUNCTION mixtral_models()
RETURNS TABLE(name text, architecture text, n_layers int, dim int, n_experts int, n_experts_used int, n_vocab int,
    context int, weight_bytes bigint, identity text, template text)
AS 'MODULE_PATHNAME', 'mixtral_models' LANGUAGE C VOLATILE PARALLEL SAFE COST 100 ROWS 1;

CREATE FUNCTION mixtral_stats()
RETURNS jsonb
AS 'MODULE_PATHNAME', 'mixtral_stats' LANGUAGE C VOLATILE PARALLEL SAFE COST 100;

CREATE FUNCTION mixtral_engine(OUT state text, OUT worker_pid int, OUT engine_pid int, OUT model text,
    OUT wanted_model text, OUT started float8, OUT serving_since float8, OUT starts bigint, OUT retired int,
    OUT retry_at float8, OUT last_error text, OUT last_error_at float8)
AS 'MODULE_PATHNAME', 'mixtral_engine' LANGUAGE C VOLATILE PARALLEL SAFE COST 100;

CREATE FUNCTION mixtral_activity()
RETURNS TABLE(pid int, backend_start timestamptz, role oid, function text, state text, requests int, tokens bigint,
    cached bigint, since timestamptz)
AS 'MODULE_PATHNAME', 'mixtral_activity' LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 100 ROWS 10;

CREATE VIEW mixtral_models AS
    SELECT * FROM mixtral_models();

-- The engine's state, and its figures: those of mixtral_stats(), by their names; NULL while no engine serves.
CREATE VIEW mixtral_stat_engine AS
    SELECT e.state, e.worker_pid, e.engine_pid, e.model, e.wanted_model,
        to_timestamp(e.started) AS started, to_timestamp(e.serving_since) AS serving_since,
        e.starts, e.retired, to_timestamp(e.retry_at) AS retry_at,
        e.last_error, to_timestamp(e.last_error_at) AS last_error_at,
        s.*
    FROM mixtral_engine() AS e,
        LATERAL (SELECT mixtral_stats() AS figures OFFSET 0) AS f,
        LATERAL jsonb_to_record(coalesce(f.figures, '{}')) AS s(
            requests_running int, requests_waiting int, requests_done bigint, requests_failed bigint,
            kv_blocks_total int, kv_blocks_used int, kv_blocks_cached int, kv_blocks_free int,
            prompt_tokens bigint, cached_tokens bigint, completion_tokens bigint, preemptions bigint, steps bigint,
            first_tokens bigint, queue_ms_total bigint, first_token_ms_total bigint, weight_bytes bigint, kv_bytes bigint,
            batch jsonb, queue_ms jsonb, first_token_ms jsonb, models jsonb);

-- Who is using the engine. tokens: that have come; cached: of the prompts, that had not to be read again, known once an answer
-- begins. A role sees its own rows, and those of the roles it is a member of; pg_read_all_stats sees all.
CREATE VIEW mixtral_stat_activity AS
    SELECT a.pid, s.datname, r.rolname AS usename, s.application_name, a.function, a.state, a.requests, a.tokens, a.cached,
        a.since
    FROM mixtral_activity() AS a
        JOIN pg_catalog.pg_stat_activity AS s ON s.pid = a.pid AND s.backend_start = a.backend_start
        LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = a.role;

GRANT SELECT ON mixtral_models, mixtral_stat_engine, mixtral_stat_activity TO PUBLIC;

-- Gives a role the right to execute everything that uses the engine, all overloads, but those for files; mixtral_revoke takes
-- it away, that for files included.
CREATE FUNCTION mixtral_grant(role name)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN
        SELECT p.oid FROM pg_proc AS p
            JOIN pg_depend AS d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
            JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
        WHERE e.extname = 'mixtral' AND p.proname = ANY (ARRAY['mixtral_chat', 'mixtral_complete', 'mixtral_generate',
            'mixtral_stream', 'mixtral_chat_batch', 'mixtral_embed', 'mixtral_tokenize', 'mixtral_detokenize',
            'mixtral_token_count', 'mixtral_chunks'])
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', f, role);
    END LOOP;
END
$$;

CREATE FUNCTION mixtral_revoke(role name)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN
        SELECT p.oid FROM pg_proc AS p
            JOIN pg_depend AS d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
            JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
        WHERE e.extname = 'mixtral' AND p.prolang <> 0
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM %I', f, role);
    END LOOP;
END
$$;

REVOKE EXECUTE ON FUNCTION
    mixtral_chat(text, jsonb, text, int, float8, int, float8, bigint, text[], text),
    mixtral_chat(jsonb, jsonb, text, int, float8, int, float8, bigint, text[], text),
    mixtral_complete(text, jsonb, int, float8, int, float8, bigint, text[], text),
    mixtral_generate(text, jsonb, text, int, float8, int, float8, bigint, text[], text),
    mixtral_generate(jsonb, jsonb, text, int, float8, int, float8, bigint, text[], text),
    mixtral_stream(text, jsonb, text, int, float8, int, float8, bigint, text[], text),
    mixtral_stream(jsonb, jsonb, text, int, float8, int, float8, bigint, text[], text),
    mixtral_chat_batch(text[], jsonb, text, int, float8, int, float8, bigint, text[], text),
    mixtral_embed(text, jsonb),
    mixtral_tokenize(text, jsonb),
    mixtral_detokenize(int[], jsonb),
    mixtral_token_count(text, jsonb),
    mixtral_chunks(text, int, int, jsonb),
    mixtral_session_save(text, text, text, jsonb, text, text),
    mixtral_session_save(text, text, jsonb, jsonb, text, text),
    mixtral_session_load(text, text, jsonb, text),
    mixtral_grant(name),
    mixtral_revoke(name)
FROM PUBLIC;
