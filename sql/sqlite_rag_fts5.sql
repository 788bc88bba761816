-- Ask your documents, with full-text search: FTS5 finds the passages, the model answers from them.
--
--     sqlite3 notes.db
--     sqlite> .load build/mixtral
--     sqlite> .read sql/sqlite_rag_fts5.sql

CREATE TABLE IF NOT EXISTS passages(id INTEGER PRIMARY KEY, title TEXT, body TEXT NOT NULL);
CREATE VIRTUAL TABLE IF NOT EXISTS passages_fts USING fts5(title, body, content = 'passages', content_rowid = 'id',
                                                           tokenize = 'porter');
CREATE TRIGGER IF NOT EXISTS passages_insert AFTER INSERT ON passages BEGIN
    INSERT INTO passages_fts(rowid, title, body) VALUES (new.id, new.title, new.body);
END;

-- A few notes to ask about. A long document goes in as chunks that fit a prompt:
--     INSERT INTO passages(title, body)
--     SELECT docs.title, c.text FROM docs, mixtral_chunks(docs.body, 256, 32) AS c;
INSERT INTO passages(title, body) VALUES
    ('Coffee machine', 'The coffee machine is on the second floor. Descale it every first Monday of the month.'),
    ('Printer', 'The printer is called Gutenberg. When it jams, open the left flap and pull the paper upwards.'),
    ('Garden', 'Tomatoes are watered in the evening. The key of the shed hangs behind the door of the kitchen.'),
    ('Visitors', 'Visitors sign in at the desk and wear a green badge. The desk closes at six.');

-- The question, and the words of it for FTS5: each quoted, any of them may match.
CREATE TEMP TABLE question AS SELECT 'Where is the key of the shed?' AS text;
CREATE TEMP VIEW search AS
    SELECT text, '"' || replace(replace(text, '"', ' '), ' ', '" OR "') || '"' AS words FROM question;

-- What is found, best first.
SELECT title, round(bm25(passages_fts), 2) AS rank
FROM search, passages_fts WHERE passages_fts MATCH search.words ORDER BY rank LIMIT 2;

-- The answer, a row for each piece as it is made. (The prompt is built in the FROM clause, so it is there when the
-- stream starts; for a single value write mixtral_chat instead.)
WITH found(body) AS (
    SELECT passages_fts.body FROM search, passages_fts
    WHERE passages_fts MATCH search.words ORDER BY bm25(passages_fts) LIMIT 2
), prompt(text) AS (
    SELECT 'Answer the question from these notes, in one sentence.' || char(10) || group_concat(body, char(10)) ||
           char(10) || 'Question: ' || (SELECT text FROM question)
    FROM found
)
SELECT s.piece FROM prompt, mixtral_stream(prompt.text, '{"temperature": 0, "max_tokens": 60}') AS s;

DROP VIEW temp.search;
DROP TABLE temp.question;
