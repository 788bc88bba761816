-- psql -f demo_pg.sql -v model=/path/x.gguf
\pset tuples_only on
\pset format unaligned
\set QUIET on
CREATE EXTENSION mixtral;
LOAD 'mixtral';
ALTER SYSTEM SET mixtral.model = :'model';
DO $$ BEGIN PERFORM pg_reload_conf(); PERFORM pg_sleep(0.2); END $$;

\echo 'A question (the first call starts the engine)'
SELECT '  ' || mixtral_chat('What is the capital of France?', system => 'Answer in one short sentence.', max_tokens => 30, temperature => 0);
SELECT '  The model: ' || name || ', ' || n_layers || ' layers, ' || pg_size_pretty(weight_bytes) FROM mixtral_models;

\echo
\echo 'An answer as it is made: \\set FETCH_COUNT 1'
\set FETCH_COUNT 1
\pset recordsep ''
SELECT mixtral_stream('Explain in two sentences what a database index is.', max_tokens => 60, seed => 1);
\unset FETCH_COUNT
\pset recordsep '\n'

\echo
\echo
\echo 'A line about each row of a table, all at the same time'
CREATE TABLE notes(title text, body text);
INSERT INTO notes VALUES
    ('bridge', 'The council met on Tuesday and agreed to repair the old bridge before winter. The work will cost two million.'),
    ('bakery', 'Our bakery opens at seven. Bread is baked twice a day, rolls all morning. On Sundays we are closed.'),
    ('trains', 'From May on, trains to the coast run every hour instead of every two, and the last one leaves at eleven.');
SELECT '  ' || rpad(titles[ordinal], 8) || replace(text, E'\n', ' ')
FROM (SELECT array_agg(title ORDER BY title) AS titles, array_agg('Summarise in one short sentence: ' || body ORDER BY title) AS prompts FROM notes) AS n,
    mixtral_chat_batch(n.prompts, max_tokens => 40, temperature => 0);

\echo
\echo 'What the engine has done'
SELECT '  ' || requests_done || ' requests, ' || prompt_tokens || ' tokens read, of which ' || cached_tokens || ' had been read before, '
    || completion_tokens || ' written' FROM mixtral_stat_engine;
