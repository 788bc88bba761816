-- Six short documents, in a full-text index.
CREATE VIRTUAL TABLE docs USING fts5(title, body);
INSERT INTO docs VALUES
 ('Write-ahead log', 'In WAL mode SQLite appends changes to a separate log file. Readers do not block the writer, and the writer does not block readers. A checkpoint moves the log back into the database file.'),
 ('Vacuum', 'PostgreSQL keeps old row versions until VACUUM removes them. Autovacuum does this in the background. Without it tables grow and queries slow down.'),
 ('Index', 'A B-tree index keeps keys in sorted order. A query that filters on the key reads a few pages instead of the whole table. Every index makes writes slower.'),
 ('Reverse proxy', 'nginx accepts client connections and passes requests to servers behind it. It buffers slow clients, so that a server is free for the next request.'),
 ('Replication', 'A standby server replays the log of the primary. It can answer read queries. When the primary fails, the standby is promoted.'),
 ('Connection pool', 'Opening a database connection is expensive. A pool keeps connections open and lends them to requests. Too large a pool slows the database down.');
