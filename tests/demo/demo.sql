.read tests/demo/documents.sql
.mode list
.separator '' ''
CREATE TEMP TABLE question(text, search);
INSERT INTO question VALUES ('Do readers block the writer in WAL mode?', 'readers OR writer OR wal');
CREATE TEMP TABLE passages AS
  SELECT title, body FROM docs WHERE docs MATCH (SELECT search FROM question) ORDER BY rank LIMIT 2;

SELECT 'The model' || char(10) || '  ' || json_extract(mixtral_models(), '$[0].name') || char(10) || char(10);
SELECT 'The question' || char(10) || '  ' || text || char(10) || char(10) FROM question;
SELECT 'What full-text search found' || char(10);
SELECT '  [' || title || '] ' || body || char(10) FROM passages;

SELECT char(10) || 'The answer, as it is made' || char(10) || '  ';
SELECT piece FROM mixtral_stream(
  (SELECT 'Answer the question in one sentence, from this text.' || char(10) || group_concat(body, char(10)) FROM passages) ||
  char(10) || 'Question: ' || (SELECT text FROM question),
  '{"max_tokens": 60, "seed": 1}');
SELECT char(10) || char(10);

SELECT 'A line about each document' || char(10);
SELECT '  ' || printf('%-16s', title) ||
  replace(mixtral_chat('Summarize in one short sentence: ' || body, '{"max_tokens": 40, "seed": 1, "stop": "\n"}'), char(10), ' ') || char(10)
  FROM docs;

CREATE TEMP TABLE timing AS
  SELECT mixtral_generate((SELECT body FROM passages) || char(10) || 'What is this about?', '{"max_tokens": 48, "seed": 1}') AS r;
SELECT char(10) || 'Timings of one more request' || char(10);
SELECT printf('  %d tokens read, the first token after %.0f ms; %d tokens written, %.1f a second' || char(10),
  json_extract(r, '$.prompt_tokens'), json_extract(r, '$.first_token_ms'), json_extract(r, '$.completion_tokens'),
  1000.0 * (json_extract(r, '$.completion_tokens') - 1) /
    max(1, json_extract(r, '$.total_ms') - json_extract(r, '$.first_token_ms'))) FROM timing;
SELECT printf('  in all: %d tokens read, %d written' || char(10), json_extract(mixtral_stats(), '$.prompt_tokens'),
  json_extract(mixtral_stats(), '$.completion_tokens'));
