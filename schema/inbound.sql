-- inbound.db: what the host tells one session. The host is its only writer; the runner opens it read-only.
-- Table shapes are NanoClaw 2.0.64's; everything marked "ours" is added by clawbus and never needed by such a runner.
-- Text times are UTC ISO-8601 with milliseconds; integer times (ours) are epoch milliseconds.

CREATE TABLE IF NOT EXISTS messages_in (
  id                TEXT PRIMARY KEY,
  seq               INTEGER UNIQUE,              -- even; the runner's are odd
  kind              TEXT NOT NULL,
  timestamp         TEXT NOT NULL,
  status            TEXT DEFAULT 'pending',      -- pending | completed | failed | paused | cancelled
  process_after     TEXT,
  recurrence        TEXT,                        -- cron expression; re-armed by the sweep
  series_id         TEXT,
  tries             INTEGER DEFAULT 0,
  trigger           INTEGER NOT NULL DEFAULT 1,  -- 1 wakes the agent, 0 is context that rides along
  platform_id       TEXT,
  channel_type      TEXT,
  thread_id         TEXT,
  content           TEXT NOT NULL,               -- JSON
  source_session_id TEXT,
  on_wake           INTEGER NOT NULL DEFAULT 0,  -- 1: only for a container's first poll
  traceparent       TEXT,                        -- ours: the W3C trace context of its acceptance
  not_after         TEXT,                        -- ours: must not be begun at or after this time; NULL: no expiry
  solo              INTEGER NOT NULL DEFAULT 0,  -- ours: 1: never in one turn with another trigger
  holds             INTEGER NOT NULL DEFAULT 0,  -- ours: 1: until process_after it holds back every later row
  deferrals         INTEGER NOT NULL DEFAULT 0,  -- ours: the agent's latest "later" that the host has taken note of
  stop_late         INTEGER NOT NULL DEFAULT 0,  -- ours: 1: a turn that still works on it at not_after is stopped
  void_ack          TEXT,                        -- ours: status_changed of an ack that is not about this message
  relay             TEXT                         -- ours: JSON: which agent sent it and why; NULL: no agent did
);
CREATE INDEX IF NOT EXISTS idx_messages_in_series ON messages_in(series_id);
-- What is due must not cost more as the finished rows pile up.
CREATE INDEX IF NOT EXISTS messages_in_pending ON messages_in(seq) WHERE status = 'pending';
-- Dead letters are counted by every status report; that must not cost more either.
CREATE INDEX IF NOT EXISTS messages_in_failed ON messages_in(seq) WHERE status = 'failed';
-- A finished occurrence that still has to be re-armed keeps its recurrence; the sweep clears it with the re-arm.
CREATE INDEX IF NOT EXISTS messages_in_rearm ON messages_in(seq)
  WHERE recurrence IS NOT NULL AND status IN ('completed', 'failed');

CREATE TABLE IF NOT EXISTS delivered (
  message_out_id      TEXT PRIMARY KEY,
  platform_message_id TEXT,
  status              TEXT NOT NULL DEFAULT 'delivered',  -- delivered | failed | not_wanted | carried_out
  delivered_at        TEXT NOT NULL
);

CREATE TABLE IF NOT EXISTS destinations (
  name           TEXT PRIMARY KEY,
  display_name   TEXT,
  type           TEXT NOT NULL,                  -- channel | agent
  channel_type   TEXT,
  platform_id    TEXT,
  agent_group_id TEXT,
  source         TEXT                            -- config | route | own, written by the host; NULL: brought along
);

CREATE TABLE IF NOT EXISTS session_routing (
  id           INTEGER PRIMARY KEY CHECK (id = 1),
  channel_type TEXT,
  platform_id  TEXT,
  thread_id    TEXT
);

-- ours: append-only. A status never changes without a row here, in the same transaction.
CREATE TABLE IF NOT EXISTS message_history (
  id          INTEGER PRIMARY KEY,
  message_id  TEXT NOT NULL,
  event       TEXT NOT NULL,
  incarnation TEXT,
  at          INTEGER NOT NULL,
  detail      TEXT                               -- JSON or NULL
);
CREATE INDEX IF NOT EXISTS message_history_message ON message_history(message_id);

-- ours: one row a message and incarnation. Its primary key is what makes one incarnation cost at most one try.
CREATE TABLE IF NOT EXISTS attempts (
  message_id  TEXT NOT NULL,
  incarnation TEXT NOT NULL,
  claimed_at  INTEGER NOT NULL,
  ended_at    INTEGER,
  outcome     TEXT,                              -- completed | failed | orphaned | released; NULL while claimed
  PRIMARY KEY (message_id, incarnation)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS attempts_open ON attempts(message_id) WHERE outcome IS NULL;
CREATE INDEX IF NOT EXISTS attempts_incarnation ON attempts(incarnation);

-- ours: every outbound row that is known and not yet delivered. A delivered row leaves this table for `delivered`.
CREATE TABLE IF NOT EXISTS delivery_attempts (
  message_out_id  TEXT PRIMARY KEY,
  source          TEXT NOT NULL DEFAULT 'agent', -- agent: outbound.db; host: host_messages
  seq             INTEGER NOT NULL,
  destination     TEXT NOT NULL,                 -- channel_type, platform_id and thread_id as one key
  state           TEXT NOT NULL,                 -- queued | intended | retrying | dead
  attempts        INTEGER NOT NULL DEFAULT 0,
  next_attempt_at INTEGER,                       -- epoch ms; not before
  first_at        INTEGER NOT NULL,
  last_error      TEXT,
  last_error_code TEXT,
  passed          INTEGER NOT NULL DEFAULT 0,    -- of a retrying one: 0 holds its destination back, 1 lets one later row
                                                 -- try, 2 holds nothing back: a later row has arrived meanwhile
  doubts          INTEGER NOT NULL DEFAULT 0     -- how often it was unknown whether an attempt had arrived
);
CREATE INDEX IF NOT EXISTS delivery_attempts_open ON delivery_attempts(seq)
  WHERE state IN ('queued', 'intended', 'retrying');
-- Dead letters stay until an operator closes them; counting them must not cost what is queued.
CREATE INDEX IF NOT EXISTS delivery_attempts_dead ON delivery_attempts(message_out_id) WHERE state = 'dead';
-- A destination whose head is being retried holds back its own rows; finding those must not cost the queue behind them.
CREATE INDEX IF NOT EXISTS delivery_attempts_retrying ON delivery_attempts(destination) WHERE state = 'retrying';

-- ours: dead letters that an operator has dealt with. A dead letter is a failed message or a dead delivery not named here.
CREATE TABLE IF NOT EXISTS dead_letters_closed (
  id          TEXT PRIMARY KEY,                  -- of messages_in or of messages_out
  outcome     TEXT NOT NULL,                     -- dropped | expired | requeued (a message only: an answer becomes queued again)
  at          INTEGER NOT NULL,                  -- epoch ms
  by          TEXT NOT NULL,                     -- the operator's user name
  reason      TEXT,
  requeued_as TEXT                               -- the id of the new message
);

-- ours: what retention has taken away in all, so that whoever misses a row can tell that it was pruned.
CREATE TABLE IF NOT EXISTS pruned (
  what    TEXT PRIMARY KEY,                      -- messages | receipts | records
  rows    INTEGER NOT NULL,
  at      INTEGER NOT NULL,                      -- epoch ms; the last time
  through INTEGER NOT NULL                       -- epoch ms; nothing that ended later was taken
);

-- ours: the highest outbound seq the host has taken note of. Rows above it are new.
CREATE TABLE IF NOT EXISTS delivery_cursor (
  id      INTEGER PRIMARY KEY CHECK (id = 1),
  seq     INTEGER NOT NULL,
  file_id TEXT                                   -- of which outbound.db: one that was made anew starts at 0 again
);

-- ours: what the host itself has to say to a sender (a dead letter's notice); delivered like any outbound row.
CREATE TABLE IF NOT EXISTS host_messages (
  id           TEXT PRIMARY KEY,
  seq          INTEGER UNIQUE,                   -- even, from the same counter as messages_in
  in_reply_to  TEXT,
  timestamp    TEXT NOT NULL,
  kind         TEXT NOT NULL,
  platform_id  TEXT,
  channel_type TEXT,
  thread_id    TEXT,
  content      TEXT NOT NULL,
  final        INTEGER NOT NULL DEFAULT 1        -- 0: word of a message that waits; its answer is still to come
);

-- ours: the incarnation that is replaced when its turn is over. A runner that finds its own here claims nothing more.
CREATE TABLE IF NOT EXISTS draining (
  incarnation TEXT PRIMARY KEY,
  since       INTEGER NOT NULL,                  -- epoch ms
  forced      INTEGER NOT NULL DEFAULT 0         -- 1: it is ended for being stuck, and a failure that it acks now does not count
);

-- ours: what agents have asked, and how it ended. A container asks by a row of messages_out and reads the outcome here.
CREATE TABLE IF NOT EXISTS questions (
  id           TEXT PRIMARY KEY,                 -- of the row of messages_out
  message_id   TEXT,                             -- what its turn works on; NULL: unknown
  text         TEXT NOT NULL,
  options      TEXT NOT NULL,                    -- JSON: [{id, label, description}]
  free_text    INTEGER NOT NULL,                 -- 1: the answer may be any text
  fallback     TEXT,                             -- the option that counts when the deadline comes first; NULL: none
  notify       INTEGER NOT NULL,                 -- 1: nobody waits; the answer comes as a message that wakes the agent
  channel_type TEXT,
  platform_id  TEXT,
  thread_id    TEXT,
  asked_at     INTEGER NOT NULL,                 -- epoch ms
  deadline     INTEGER NOT NULL,                 -- epoch ms
  outcome      TEXT,                             -- answered | declined | timeout | cancelled; NULL while it is open
  choice       TEXT,
  answer       TEXT,
  answered_by  TEXT,
  answer_id    TEXT,                             -- the id that the reply came with: the same one twice is one answer
  decided_at   INTEGER,                          -- epoch ms
  asks_for     TEXT                              -- the kind of change that an approver is asked for; NULL: none
);
CREATE INDEX IF NOT EXISTS questions_open ON questions(deadline) WHERE outcome IS NULL;
CREATE INDEX IF NOT EXISTS questions_message ON questions(message_id);
-- ours: what is sent to this session at given times. The next occurrence is set in the transaction that stores the last one.
CREATE TABLE IF NOT EXISTS schedules (
  key          TEXT PRIMARY KEY,
  times        TEXT NOT NULL,                    -- JSON: at | every_ms | cron, timezone, start, until, count, catch_up
  content      TEXT NOT NULL,                    -- JSON: the message
  channel_type TEXT NOT NULL,                    -- where the answers go
  platform_id  TEXT NOT NULL,
  thread_id    TEXT,
  origin       TEXT NOT NULL,                    -- config | operator | agent
  state        TEXT NOT NULL,                    -- active | paused | over
  next_at      INTEGER,                          -- epoch ms; NULL: over
  sent         INTEGER NOT NULL DEFAULT 0,       -- occurrences that became a message
  changed_at   INTEGER NOT NULL,
  changed_by   TEXT NOT NULL,
  check_program TEXT,                            -- run by a shell in the container; the agent is woken only if it prints something
  failures     INTEGER NOT NULL DEFAULT 0        -- above 0: it was paused after so many failures in a row
);
-- Every sweep asks what is due and what the configuration owns; neither may cost what is over.
CREATE INDEX IF NOT EXISTS schedules_due ON schedules(state, next_at);
CREATE INDEX IF NOT EXISTS schedules_origin ON schedules(origin);

-- ours: the occurrences of schedules, the newest of each. Its primary key is what keeps an occurrence from coming twice.
CREATE TABLE IF NOT EXISTS schedule_runs (
  key        TEXT NOT NULL,
  due        INTEGER NOT NULL,                   -- epoch ms
  at         INTEGER NOT NULL,                   -- when it was stored or left out
  message_id TEXT,                               -- NULL: it was left out
  detail     TEXT,                               -- why it was left out
  PRIMARY KEY (key, due)
) WITHOUT ROWID;

-- ours: what came of the agent's own requests about schedules. A container asks by a row of messages_out and reads it here.
CREATE TABLE IF NOT EXISTS schedule_requests (
  id      TEXT PRIMARY KEY,                      -- of the row of messages_out
  at      INTEGER NOT NULL,                      -- epoch ms
  outcome TEXT NOT NULL                          -- JSON: {ok: true, key, was, ...} or {ok: false, error: {code, message, fix}}
);
