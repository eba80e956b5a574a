-- Ids compare byte by byte (COLLATE "C"): it is faster, and memories that tie are recalled in the same order everywhere.

-- The conversation: every acknowledged turn. The pair (session_id, number) is what keeps two writers from both
-- appending turn 7; its index also serves every read, which all go by session and number.
CREATE TABLE turns (
    id text COLLATE "C" PRIMARY KEY,
    session_id text COLLATE "C" NOT NULL,
    number integer NOT NULL,
    owner text COLLATE "C" NOT NULL,
    correlation_id text NOT NULL,
    message text NOT NULL,
    reply text NOT NULL,
    engine text NOT NULL,
    model text NOT NULL,
    prompt_tokens integer NOT NULL,
    completion_tokens integer NOT NULL,
    degraded text[] NOT NULL,
    -- Unix time in seconds, to the last bit: a timestamptz would round it to microseconds.
    at double precision NOT NULL,
    UNIQUE (session_id, number)
);

CREATE EXTENSION IF NOT EXISTS vector;

-- A memory is recalled by its owner only, so an index on the owner and an exact comparison with all that is theirs is
-- both fast (thousands of memories in milliseconds) and exact. An approximate index (HNSW) would search all owners'
-- memories and filter afterwards, and so lose recall for whoever has few.
CREATE TABLE memories (
    id text COLLATE "C" PRIMARY KEY,
    owner text COLLATE "C" NOT NULL,
    text text NOT NULL,
    embedding vector(256) NOT NULL,
    at double precision NOT NULL
);

CREATE INDEX memories_owner ON memories (owner);
