-- Summarise a table without locking it: claim, generate, write.
--
--     sqlite3 notes.db
--     sqlite> .load build/mixtral
--     sqlite> .read sql/sqlite_summarise.sql
--
-- UPDATE docs SET summary = mixtral_chat(body) works, but it holds the write lock until the model has read every row:
-- minutes in which nobody else can write, and all is lost when it is interrupted. Here the database is written to
-- twice, for milliseconds each time; in between, only a temporary table is in use. Several processes can do this
-- at the same time on different rows, and what a process that died had claimed is claimed again after ten minutes.

CREATE TABLE IF NOT EXISTS docs(
    id INTEGER PRIMARY KEY,
    body TEXT NOT NULL,
    summary TEXT,
    claimed_by TEXT, -- who is at work on it
    claimed_at INTEGER
);
INSERT INTO docs(body) VALUES
    ('The council met on Tuesday and agreed to repair the old bridge before winter. The work will cost two million '
     || 'and begins in May. Until then, lorries have to take the road through the valley.'),
    ('Our bakery opens at seven. Bread is baked twice a day, rolls all morning. On Sundays we are closed, but the '
     || 'stall at the station sells what is left from Saturday at half the price.');

CREATE TEMP TABLE me AS SELECT hex(randomblob(8)) AS name;

-- 1. Claim a few rows, and take a copy. The claim is committed at once.
UPDATE docs SET claimed_by = (SELECT name FROM temp.me), claimed_at = unixepoch()
WHERE id IN (
    SELECT id FROM docs
    WHERE summary IS NULL AND (claimed_at IS NULL OR claimed_at < unixepoch() - 600)
    ORDER BY id LIMIT 8
);
CREATE TEMP TABLE work AS
    SELECT id, body, NULL AS summary FROM docs
    WHERE summary IS NULL AND claimed_by = (SELECT name FROM temp.me);

-- 2. Generate. Only the temporary database is touched, so nobody waits for it.
UPDATE temp.work SET summary = mixtral_chat('Summarise in one short sentence: ' || body,
                                            '{"temperature": 0, "max_tokens": 40}');

-- 3. Write the results, unless somebody else took a row over in the meantime.
UPDATE docs SET summary = work.summary, claimed_by = NULL, claimed_at = NULL
FROM temp.work AS work
WHERE docs.id = work.id AND docs.claimed_by = (SELECT name FROM temp.me);

DROP TABLE temp.work;
DROP TABLE temp.me;
SELECT id, summary FROM docs ORDER BY id;
