-- A queue of jobs for the model: any number of workers, no lock and no snapshot held while the model talks.
--
--     psql -f sql/pg_jobs.sql              makes the queue, and works on it once
--     psql -c 'CALL work_on_jobs()'        a worker: run as many as the engine is to have at a time
--
-- A job is claimed and the claim committed; then the model talks, outside of any transaction that has written; then the result is
-- written and committed. FOR UPDATE SKIP LOCKED lets workers pass each other. What a worker that died had claimed is claimed
-- again after ten minutes.

CREATE EXTENSION IF NOT EXISTS mixtral;

CREATE TABLE jobs(
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    prompt text NOT NULL,
    state text NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'claimed', 'done', 'failed')),
    claimed_at timestamptz,
    result text
);
CREATE INDEX ON jobs(id) WHERE state IN ('new', 'claimed');

-- A procedure, because only that may COMMIT in the middle. Call it outside of a transaction.
CREATE PROCEDURE work_on_jobs() LANGUAGE plpgsql AS $$
DECLARE
    job jobs;
    answer text;
    outcome text;
BEGIN
    LOOP
        UPDATE jobs SET state = 'claimed', claimed_at = now()
        WHERE id = (
            SELECT id FROM jobs
            WHERE state = 'new' OR (state = 'claimed' AND claimed_at < now() - interval '10 minutes')
            ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
        )
        RETURNING * INTO job;
        EXIT WHEN NOT FOUND;
        COMMIT;

        BEGIN
            answer := mixtral_chat(job.prompt, max_tokens => 60);
            outcome := 'done';
        EXCEPTION WHEN program_limit_exceeded OR invalid_parameter_value THEN
            answer := SQLERRM; -- this job's own fault: too long, mostly
            outcome := 'failed';
        END;
        COMMIT;

        UPDATE jobs SET state = outcome, result = answer
        WHERE id = job.id AND state = 'claimed' AND claimed_at = job.claimed_at; -- unless somebody else has it by now
        COMMIT;
    END LOOP;
END
$$;

INSERT INTO jobs(prompt) VALUES ('Say hello in French.'), ('What is a queue?'), (repeat('far too long ', 40000));
CALL work_on_jobs();
SELECT id, state, left(result, 60) AS result FROM jobs ORDER BY id;
