-- Answers from your own documents: full-text search finds passages, the model answers from them. Needs nothing but PostgreSQL.
--
--     psql -f sql/pg_rag.sql
--
-- Long documents are cut into passages of so many of the model's tokens. Where pgvector is installed, an index on
-- mixtral_embed(body)::vector finds by meaning instead; the second half does so.

CREATE EXTENSION IF NOT EXISTS mixtral;

CREATE TABLE documents(
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    title text NOT NULL,
    body text NOT NULL
);
INSERT INTO documents(title, body) VALUES
    ('vacuum', 'VACUUM reclaims storage occupied by dead tuples. In normal operation, tuples that are deleted or obsoleted by an update '
        'are not physically removed from their table; they remain present until a VACUUM is done.'),
    ('wal', 'Write-ahead logging means that changes to data files are written only after those changes have been logged and the log '
        'has been flushed to permanent storage. After a crash the database is recovered from the log.'),
    ('standby', 'A hot standby is a server that replays the log of its primary and accepts queries that only read.');

-- Passages of at most 120 tokens, of which neighbours share 20.
CREATE TABLE passages(
    document bigint NOT NULL REFERENCES documents ON DELETE CASCADE,
    body text NOT NULL,
    search tsvector GENERATED ALWAYS AS (to_tsvector('english', body)) STORED
);
INSERT INTO passages(document, body)
    SELECT d.id, c.text FROM documents AS d, mixtral_chunks(d.body, 120, 20) AS c;
CREATE INDEX ON passages USING gin(search);

-- A word of the question is enough for a passage to be found; those with more of them come first.
CREATE FUNCTION ask(question text) RETURNS text LANGUAGE sql VOLATILE AS $$
    WITH words AS (
        SELECT to_tsquery('english', string_agg(quote_literal(lexeme), ' | ')) AS any_word
        FROM unnest(to_tsvector('english', question))
    ), found AS (
        SELECT p.body FROM passages AS p, words AS w
        WHERE p.search @@ w.any_word ORDER BY ts_rank(p.search, w.any_word) DESC LIMIT 3
    )
    SELECT mixtral_chat('Answer the question in one sentence, from this text.' || E'\n' || string_agg(body, E'\n') ||
                        E'\nQuestion: ' || question, max_tokens => 60, temperature => 0)
    FROM found
$$;

SELECT ask('When is the storage of deleted rows reclaimed?') AS answer;

-- By meaning, with pgvector.
SELECT count(*) > 0 AS has_vector FROM pg_available_extensions WHERE name = 'vector' \gset
\if :has_vector
CREATE EXTENSION IF NOT EXISTS vector;
ALTER TABLE passages ADD COLUMN meaning vector;
UPDATE passages SET meaning = mixtral_embed(body)::vector;
SELECT body FROM passages ORDER BY meaning <=> mixtral_embed('recovery after a crash')::vector LIMIT 1;
\endif
