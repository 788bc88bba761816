-- What each function takes and gives, on a model of random weights: texts are compared, not shown.
CREATE EXTENSION mixtral;
SELECT mixtral_version();
SET client_min_messages = warning;

-- chat: text, an unknown literal, messages, named arguments
SELECT pg_typeof(mixtral_chat('hi', max_tokens => 4)), mixtral_chat('hi', max_tokens => 4, temperature => 0) IS NOT NULL AS answered;
SELECT mixtral_chat('hi', max_tokens => 8, temperature => 0)
     = mixtral_chat('[{"role": "user", "content": "hi"}]'::jsonb, max_tokens => 8, temperature => 0) AS same;
SELECT mixtral_chat('hi', '{"max_tokens": 8, "temperature": 0}')
     = mixtral_chat('hi', max_tokens => 8, temperature => 0) AS same;
SELECT mixtral_chat('hi', system => 'be brief', max_tokens => 8, temperature => 0)
     = mixtral_chat('[{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]'::jsonb,
                    max_tokens => 8, temperature => 0) AS same;
SELECT mixtral_chat('hi', max_tokens => 8, seed => 7, temperature => 1)
     = mixtral_chat('hi', max_tokens => 8, seed => 7, temperature => 1) AS same;

-- a named argument goes before the option, the option before the default
SELECT completion_tokens FROM mixtral_generate('hi', '{"max_tokens": 3, "ignore_eos": true}');
SELECT completion_tokens FROM mixtral_generate('hi', '{"max_tokens": 3, "ignore_eos": true}', max_tokens => 2);
SET mixtral.default_max_tokens = 5;
SELECT completion_tokens FROM mixtral_generate('hi', '{"ignore_eos": true}');
SELECT completion_tokens FROM mixtral_generate('hi', '{"max_tokens": null, "ignore_eos": true}');
SET mixtral.default_temperature = 0;
SELECT mixtral_chat('hi') = mixtral_chat('hi') AS same;
RESET mixtral.default_temperature;
RESET mixtral.default_max_tokens;

-- NULL gives NULL, and for the rest it is as if left out
SELECT mixtral_chat(NULL) IS NULL, mixtral_chat(NULL::jsonb) IS NULL, mixtral_complete(NULL) IS NULL,
       mixtral_embed(NULL) IS NULL, mixtral_tokenize(NULL) IS NULL, mixtral_detokenize(NULL) IS NULL,
       mixtral_token_count(NULL) IS NULL, (mixtral_generate(NULL::text)).text IS NULL;
SELECT count(*) FROM mixtral_chunks(NULL, 3);
SELECT count(*) FROM mixtral_stream(NULL::text);
SELECT count(*) FROM mixtral_chat_batch(NULL);
SELECT mixtral_chat('hi', NULL, NULL, 2) IS NOT NULL AS answered;

-- generate: columns
SELECT finish_reason, prompt_tokens > 0 AS prompt, cached_tokens >= 0 AS cached, completion_tokens, first_token_ms > 0 AS first,
       total_ms >= first_token_ms AS total, seed, model IS NOT NULL AS model, jsonb_array_length(choices) AS choices
FROM mixtral_generate('hi', '{"n": 3, "ignore_eos": true}', max_tokens => 4, seed => 11);
SELECT jsonb_array_length(choices #> '{0,logprobs,content}') AS tokens,
       jsonb_array_length(choices #> '{0,logprobs,content,0,top_logprobs}') AS alternatives
FROM mixtral_generate('hi', '{"logprobs": true, "top_logprobs": 2, "ignore_eos": true}', max_tokens => 3);

-- stream: its pieces are the text; LIMIT and a cursor that is closed end it
SELECT string_agg(piece, '') = mixtral_chat('hi', max_tokens => 30, temperature => 0) AS same
FROM (SELECT mixtral_stream('hi', max_tokens => 30, temperature => 0) AS piece) AS s;
SELECT count(*) FROM (SELECT mixtral_stream('hi', '{"ignore_eos": true}', max_tokens => 200) LIMIT 2) AS s;
BEGIN;
DECLARE c CURSOR FOR SELECT mixtral_stream('hi', '{"ignore_eos": true}', max_tokens => 200);
MOVE 2 IN c;
CLOSE c;
DECLARE d CURSOR FOR SELECT mixtral_stream('hi', '{"ignore_eos": true}', max_tokens => 200);
MOVE 1 IN d;
ROLLBACK;
SELECT count(*) > 1 AS many FROM mixtral_stream('hi', '{"ignore_eos": true}', max_tokens => 20);

-- complete, embed, tokens
SELECT mixtral_complete('once upon', max_tokens => 4, temperature => 0) IS NOT NULL AS answered;
SELECT pg_typeof(v), array_length(v, 1), round(sqrt((SELECT sum(x * x) FROM unnest(v) AS x))::numeric, 3) AS length
FROM mixtral_embed('once upon') AS v;
SELECT mixtral_detokenize(mixtral_tokenize('once upon a time')) = 'once upon a time' AS same,
       cardinality(mixtral_tokenize('once upon a time')) = mixtral_token_count('once upon a time') AS counted;
SELECT bool_and(tokens <= 3) AS short, bool_and(length(text) = "end" - start) AS bytes, min(start), max("end"), count(*) > 2 AS many
FROM mixtral_chunks('one two three four five six', 3, 1);

-- batch: in order, with NULLs; what one prompt is too long for is its row's error
SELECT ordinal, error IS NULL AS fine, text IS NOT NULL AS answered, finish_reason, completion_tokens
FROM mixtral_chat_batch(ARRAY['a', NULL, 'b', repeat('long ', 3000)], '{"ignore_eos": true}', max_tokens => 3);
SELECT count(*), count(DISTINCT ordinal), count(text), max(completion_tokens)
FROM mixtral_chat_batch((SELECT array_agg('number ' || i) FROM generate_series(1, 150) AS i), '{"ignore_eos": true}', max_tokens => 2);
SELECT text = mixtral_chat('b', max_tokens => 6, temperature => 0) AS same
FROM mixtral_chat_batch(ARRAY['a', 'b'], max_tokens => 6, temperature => 0) WHERE ordinal = 2;
SELECT count(*) FROM mixtral_chat_batch('{}');

-- sessions: what is written has an absolute path, what is read may have one from the data directory on
SELECT current_setting('data_directory') || '/contract.session' AS session, repeat('The tenant pays the rent in time. ', 20) AS document \gset
SELECT lo_from_bytea(0, repeat('k', 32)::bytea) AS key \gset
SELECT lo_export(:key, 'session.key'), lo_unlink(:key);
SELECT mixtral_session_save(:'session', 'session.key', :'document', '{"tenant": "saver"}') AS saved \gset
SELECT :saved > 64 AS tokens, :saved % 32 AS rest, mixtral_session_save(:'session', 'session.key', :'document') = :saved AS again;
SELECT cached_tokens FROM mixtral_generate(:'document', '{"tenant": "loader"}', max_tokens => 1);
SELECT mixtral_session_load('contract.session', 'session.key', '{"tenant": "other"}') = :saved AS loaded;
SELECT cached_tokens >= :saved AS cached FROM mixtral_generate(:'document' || 'Does he?', '{"tenant": "other"}', max_tokens => 1);
SELECT mixtral_session_save(:'session', 'session.key', system => 'be brief', messages => jsonb_build_array(jsonb_build_object(
    'role', 'user', 'content', :'document'))) >= :saved AS messages;
SELECT mixtral_session_load(:'session', 'session.key', model => (SELECT name FROM mixtral_models)) >= :saved AS loaded;
SELECT mixtral_session_save(NULL, 'k', 'p') IS NULL, mixtral_session_save('/s', NULL, 'p') IS NULL, mixtral_session_save('/s', 'k', NULL::jsonb) IS NULL,
       mixtral_session_load(NULL, 'k') IS NULL, mixtral_session_load('s', NULL) IS NULL;
SELECT name FROM pg_ls_dir('.') AS name WHERE name LIKE '%session%' ORDER BY name COLLATE "C";

-- what there is
SELECT name IS NOT NULL AS name, architecture, n_layers, dim, n_experts, n_experts_used, n_vocab, context FROM mixtral_models;
SELECT state, model IS NOT NULL AS model, starts, retired, last_error FROM mixtral_stat_engine;
-- a column for each figure, by its name
SELECT key AS figure_without_a_column FROM jsonb_object_keys(mixtral_stats()) AS key
WHERE key NOT IN (SELECT attname FROM pg_attribute WHERE attrelid = 'mixtral_stat_engine'::regclass AND NOT attisdropped);
SELECT requests_done > 100 AS done, completion_tokens > 100 AS tokens, kv_blocks_total > 0 AS blocks, jsonb_typeof(batch) FROM mixtral_stat_engine;
SELECT count(*) FROM mixtral_stat_activity;

-- how they are declared
SELECT proname, bool_and(provolatile = 'v') AS volatile, string_agg(DISTINCT proparallel::text, '') AS parallel, bool_or(proisstrict) AS strict,
       min(procost) AS cost, bool_or(has_function_privilege('public', oid, 'EXECUTE')) AS public
FROM pg_proc WHERE proname LIKE 'mixtral\_%' GROUP BY proname ORDER BY proname COLLATE "C";
