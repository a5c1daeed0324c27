-- outbound.db: what one session tells the host. The session's container is its only writer; the host opens it read-only.
-- Table shapes are NanoClaw 2.0.64's; what is marked "ours" is nullable, so such a runner's file stays readable.

CREATE TABLE IF NOT EXISTS messages_out (
  id            TEXT PRIMARY KEY,
  seq           INTEGER UNIQUE,                  -- odd, above every seq of both files
  in_reply_to   TEXT,
  timestamp     TEXT NOT NULL,
  deliver_after TEXT,
  recurrence    TEXT,
  kind          TEXT NOT NULL,
  platform_id   TEXT,
  channel_type  TEXT,
  thread_id     TEXT,
  content       TEXT NOT NULL,                   -- JSON
  final         INTEGER NOT NULL DEFAULT 1       -- ours: 0: said in the middle of a turn; it answers no message
);

CREATE TABLE IF NOT EXISTS processing_ack (
  message_id     TEXT PRIMARY KEY,
  status         TEXT NOT NULL,                  -- processing | completed | failed | later (ours; see deferrals)
  status_changed TEXT NOT NULL,
  incarnation    TEXT                            -- ours: who claimed it; NULL from an older runner
);
-- ours: what is claimed now must not cost more as the completed acks pile up.
CREATE INDEX IF NOT EXISTS processing_ack_claimed ON processing_ack(message_id) WHERE status = 'processing';

CREATE TABLE IF NOT EXISTS session_state (
  key        TEXT PRIMARY KEY,
  value      TEXT NOT NULL,
  updated_at TEXT NOT NULL
);

CREATE TABLE IF NOT EXISTS container_state (
  id                       INTEGER PRIMARY KEY CHECK (id = 1),
  current_tool             TEXT,
  tool_declared_timeout_ms INTEGER,
  tool_started_at          TEXT,
  updated_at               TEXT NOT NULL
);

-- ours: what the operator is told of a message's last turn, and its sender is not: why it failed, or sent nothing.
CREATE TABLE IF NOT EXISTS turn_notes (
  message_id  TEXT PRIMARY KEY,
  incarnation TEXT,
  at          TEXT NOT NULL,
  code        TEXT NOT NULL,
  message     TEXT NOT NULL                      -- at most 2,000 characters
);

-- ours: what a turn used, by its agent's own account. One row for each turn, under its last trigger.
CREATE TABLE IF NOT EXISTS turn_usage (
  message_id    TEXT PRIMARY KEY,
  incarnation   TEXT,
  at            TEXT NOT NULL,
  input_tokens  INTEGER,
  output_tokens INTEGER,
  cached_tokens INTEGER,                         -- of the input: read from or written to a cache
  cost          REAL,
  currency      TEXT,                            -- ISO 4217
  tools         TEXT                             -- JSON: [[name, started, ended], ...], epoch ms; at most 100
);

-- ours: what belongs to an ack `later`. A table of its own, so that processing_ack keeps the columns that others write.
CREATE TABLE IF NOT EXISTS deferrals (
  message_id TEXT PRIMARY KEY,
  deferral   INTEGER NOT NULL,                   -- one above messages_in.deferrals at the time: the host has yet to see it
  retry_at   TEXT,                               -- not before; NULL: the host's own back-off
  reason     TEXT
);
