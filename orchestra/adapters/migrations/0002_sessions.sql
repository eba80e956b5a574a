-- How a turn ended, and what memory recalled for it (JSON, NULL for nothing). Turns from before this migration ended as
-- turns did then; what was recalled for them is not known.
ALTER TABLE turns
    ADD COLUMN finish_reason text NOT NULL DEFAULT 'stop',
    ADD COLUMN recalled text;

-- Sessions that have a profile, and the ids of deleted ones: a row that says so keeps a turn that was under way when its
-- session was deleted from coming back, and holds nothing but the id. A session of neither kind has only turns.
CREATE TABLE sessions (
    id text COLLATE "C" PRIMARY KEY,
    owner text COLLATE "C" NOT NULL,
    -- JSON as it was given (jsonb would reorder what stands in prompts), and how often it was changed.
    profile text NOT NULL,
    revision integer NOT NULL,
    created_at double precision NOT NULL,
    updated_at double precision NOT NULL,
    deleted boolean NOT NULL DEFAULT false
);
