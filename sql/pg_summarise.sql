-- A summary of each row of a table, many at a time.
--
--     psql -f sql/pg_summarise.sql
--
-- UPDATE docs SET summary = mixtral_chat(...) works, one row after the other, with a lock on every row that it has reached and one
-- snapshot until the end. Here the prompts go to the engine together, which reads the model's weights once for all of
-- them, and the table is locked for the moment in which the results are written. For work that is to go on for hours
-- beside others, see pg_jobs.sql.

CREATE EXTENSION IF NOT EXISTS mixtral;

CREATE TABLE docs(
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    body text NOT NULL,
    summary text
);
INSERT INTO docs(body) VALUES
    ('The council met on Tuesday and agreed to repair the old bridge before winter. The work will cost two million and begins in May. '
        'Until then, lorries have to take the road through the valley.'),
    ('Our bakery opens at seven. Bread is baked twice a day, rolls all morning. On Sundays we are closed, but the stall at the station '
        'sells what is left from Saturday at half the price.');

-- 1. Generate, into a temporary table: nobody waits for that.
CREATE TEMP TABLE made AS
    WITH work AS (
        SELECT array_agg(id ORDER BY id) AS ids, array_agg('Summarise in one short sentence: ' || body ORDER BY id) AS prompts
        FROM docs WHERE summary IS NULL
    )
    SELECT w.ids[b.ordinal] AS id, b.text, b.error
    FROM work AS w, mixtral_chat_batch(w.prompts, max_tokens => 40, temperature => 0) AS b;

-- 2. Write.
UPDATE docs SET summary = made.text FROM made WHERE docs.id = made.id AND made.error IS NULL;

SELECT id, summary FROM docs ORDER BY id;
SELECT id, error FROM made WHERE error IS NOT NULL;
