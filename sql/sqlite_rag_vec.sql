-- Ask your documents, by meaning: mixtral_embed makes vectors, sqlite-vec (npm or PyPI: sqlite-vec) finds the nearest.
--
--     sqlite3 notes.db
--     sqlite> .load build/mixtral
--     sqlite> .load node_modules/sqlite-vec-linux-x64/vec0
--     sqlite> .read sql/sqlite_rag_vec.sql
--
-- mixtral_embed gives a BLOB of float32 with the subtype that sqlite-vec expects. Vectors have length 1, so that the order
-- by vec0's distance is the order by cosine. They belong to the model that made them: another model, another table.

CREATE TABLE IF NOT EXISTS passages(id INTEGER PRIMARY KEY, title TEXT, body TEXT NOT NULL);

-- 576 is the width of SmolLM2-135M; see mixtral_models()->0->>'dim'.
CREATE VIRTUAL TABLE IF NOT EXISTS vec_passages USING vec0(embedding float[576]);

INSERT INTO passages(title, body) VALUES
    ('Coffee machine', 'The coffee machine is on the second floor. Descale it every first Monday of the month.'),
    ('Printer', 'The printer is called Gutenberg. When it jams, open the left flap and pull the paper upwards.'),
    ('Garden', 'Tomatoes are watered in the evening. The key of the shed hangs behind the door of the kitchen.'),
    ('Visitors', 'Visitors sign in at the desk and wear a green badge. The desk closes at six.');

-- Vectors for what has none yet. They are made into a temporary table first, so that the database is not locked for
-- writing while the model works (see sqlite_summarise.sql).
CREATE TEMP TABLE missing AS
    SELECT id, body, NULL AS embedding FROM passages WHERE id NOT IN (SELECT rowid FROM vec_passages);
UPDATE temp.missing SET embedding = mixtral_embed(body);
INSERT INTO vec_passages(rowid, embedding) SELECT id, embedding FROM temp.missing;
DROP TABLE temp.missing;

-- The two nearest passages.
SELECT p.title, round(v.distance, 3) AS distance
FROM vec_passages AS v JOIN passages AS p ON p.id = v.rowid
WHERE v.embedding MATCH mixtral_embed('The paper is stuck, what do I do?') AND k = 2
ORDER BY v.distance;

-- And the answer from them.
WITH found(body) AS (
    SELECT p.body FROM vec_passages AS v JOIN passages AS p ON p.id = v.rowid
    WHERE v.embedding MATCH mixtral_embed('The paper is stuck, what do I do?') AND k = 2
    ORDER BY v.distance
)
SELECT mixtral_chat('Answer the question from these notes, in one sentence.' || char(10) ||
                    group_concat(body, char(10)) || char(10) || 'Question: The paper is stuck, what do I do?',
                    '{"temperature": 0, "max_tokens": 60}') AS answer
FROM found;
