-- central.db: the host's registry. Only the daemon writes it; the command line reads it when the daemon is down.
-- All times are epoch milliseconds.

CREATE TABLE IF NOT EXISTS install (
  id         INTEGER PRIMARY KEY CHECK (id = 1),
  install_id TEXT NOT NULL,                      -- the label that tells our containers from another install's
  created_at INTEGER NOT NULL
);

CREATE TABLE IF NOT EXISTS sessions (
  agent             TEXT NOT NULL,
  session           TEXT NOT NULL,
  created_at        INTEGER NOT NULL,
  -- Set before the first row of work is written and cleared after the last is settled, so a crash errs on "look".
  active            INTEGER NOT NULL DEFAULT 1,
  next_due_at       INTEGER,                     -- earliest instant at which an idle session has work again
  quarantined_at    INTEGER,
  quarantine_reason TEXT,
  spawn_failures    INTEGER NOT NULL DEFAULT 0,  -- consecutive
  next_spawn_at     INTEGER,
  last_spawn_error  TEXT,
  dead_letters      INTEGER NOT NULL DEFAULT 0,  -- open ones when it was last swept: told without opening its files
  schedules         INTEGER NOT NULL DEFAULT 0,  -- 1: it had schedules when it was last swept
  PRIMARY KEY (agent, session)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sessions_active ON sessions(agent, session) WHERE active = 1;
CREATE INDEX IF NOT EXISTS sessions_quarantined ON sessions(agent, session) WHERE quarantined_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS sessions_dead ON sessions(agent, session) WHERE dead_letters > 0;
CREATE INDEX IF NOT EXISTS sessions_due ON sessions(next_due_at) WHERE next_due_at IS NOT NULL;

CREATE TABLE IF NOT EXISTS incarnations (
  id           TEXT PRIMARY KEY,                 -- time-ordered
  agent        TEXT NOT NULL,
  session      TEXT NOT NULL,
  runtime      TEXT NOT NULL,
  fingerprint  TEXT NOT NULL,
  container_id TEXT,                             -- NULL until the runtime has answered
  created_at   INTEGER NOT NULL,
  started_at   INTEGER,
  ended_at     INTEGER,                          -- set on confirmed exit only
  exit_code    INTEGER,
  epoch        INTEGER NOT NULL DEFAULT 0,       -- the serving slot's, when it was begun; 0 without slots
  end_reason   TEXT                              -- idle | ceiling | claim_stuck | operator | exited | ...
);
-- No session has two live incarnations: the file itself refuses the second.
CREATE UNIQUE INDEX IF NOT EXISTS incarnations_live ON incarnations(agent, session) WHERE ended_at IS NULL;
CREATE INDEX IF NOT EXISTS incarnations_session ON incarnations(agent, session, created_at);

-- Sessions that were deleted, by whom and why. One without finished_at is finished by the next start.
CREATE TABLE IF NOT EXISTS session_deletions (
  id          TEXT PRIMARY KEY,                  -- time-ordered; the folder is sessions/.trash-ID until it is removed
  agent       TEXT NOT NULL,
  session     TEXT NOT NULL,
  at          INTEGER NOT NULL,
  by          TEXT NOT NULL,                     -- the operator's user name, or retention
  reason      TEXT,
  moved       INTEGER NOT NULL DEFAULT 0,        -- 1: the folder has been put aside; a session of the name is a new one
  finished_at INTEGER
);
CREATE INDEX IF NOT EXISTS session_deletions_open ON session_deletions(id) WHERE finished_at IS NULL;

-- What retention has taken away in all, over all sessions, so that a status can tell.
CREATE TABLE IF NOT EXISTS pruned (
  what    TEXT PRIMARY KEY,                      -- messages | receipts | records | incarnations | mailbox
  rows    INTEGER NOT NULL,
  at      INTEGER NOT NULL,                      -- the last time
  through INTEGER NOT NULL                       -- nothing that ended later was taken
);

-- What agents used at the gate. The daemon writes a day's totals as they grow; budgets go on from them after a restart.
CREATE TABLE IF NOT EXISTS egress_usage (
  day        TEXT NOT NULL,                      -- YYYY-MM-DD in the configured time zone
  agent      TEXT NOT NULL,
  route      TEXT NOT NULL,                      -- a route or a table of hosts; empty: nothing allowed it
  requests   INTEGER NOT NULL,                   -- passed on
  refused    INTEGER NOT NULL,
  failed     INTEGER NOT NULL,                   -- of requests: without a whole answer
  tokens_in  INTEGER NOT NULL,
  tokens_out INTEGER NOT NULL,
  estimated  INTEGER NOT NULL,                   -- answers whose tokens the service did not say
  bytes_up   INTEGER NOT NULL,
  bytes_down INTEGER NOT NULL,
  PRIMARY KEY (day, agent, route)
) WITHOUT ROWID;

-- What agents used in a day, by their own account. Whole totals, about a second old; budgets go on from them after a restart.
CREATE TABLE IF NOT EXISTS agent_usage (
  day    TEXT NOT NULL,                          -- YYYY-MM-DD in the configured time zone
  agent  TEXT NOT NULL,
  turns  INTEGER NOT NULL,                       -- begun
  tokens INTEGER NOT NULL,                       -- in and out
  cost   REAL NOT NULL,                          -- in the currency that the agent reports
  PRIMARY KEY (day, agent)
) WITHOUT ROWID;

-- What had been used when an operator refilled an agent's budget of that day: only what came later counts.
CREATE TABLE IF NOT EXISTS agent_refills (
  day    TEXT NOT NULL,
  agent  TEXT NOT NULL,
  turns  INTEGER NOT NULL,
  tokens INTEGER NOT NULL,
  cost   REAL NOT NULL,
  at     INTEGER NOT NULL,
  by     TEXT NOT NULL,
  reason TEXT,
  PRIMARY KEY (day, agent)
) WITHOUT ROWID;

-- Sessions whose files were read and found idle, so that a report need not open them while they look the same.
CREATE TABLE IF NOT EXISTS verified_idle (
  agent   TEXT NOT NULL,
  session TEXT NOT NULL,
  at      INTEGER NOT NULL,                      -- when they were read
  stamp   TEXT NOT NULL,                         -- what lstat(2) said of in/, out/ and the two files, before and after
  PRIMARY KEY (agent, session)
) WITHOUT ROWID;

-- Routes that an operator added by command. Those of the configuration are not here.
CREATE TABLE IF NOT EXISTS routes (
  name     TEXT PRIMARY KEY,
  keys     TEXT NOT NULL,                        -- JSON: the keys of a [[routes]] table
  added_at INTEGER NOT NULL,
  added_by TEXT NOT NULL,
  reason   TEXT
);

-- Where an agent with a mention-sticky route was mentioned: what follows there needs no mention.
CREATE TABLE IF NOT EXISTS mentioned (
  agent   TEXT NOT NULL,
  channel TEXT NOT NULL,
  place   TEXT NOT NULL,
  thread  TEXT NOT NULL,                         -- empty: the place has none
  at      INTEGER NOT NULL,
  PRIMARY KEY (agent, channel, place, thread)
) WITHOUT ROWID;

-- Events that reached no agent, or not this one, and why. One row for each kind of refusal; the oldest go first.
CREATE TABLE IF NOT EXISTS refused_events (
  channel  TEXT NOT NULL,
  place    TEXT NOT NULL,
  sender   TEXT NOT NULL,                        -- empty where the sender did not matter
  agent    TEXT NOT NULL,                        -- empty: no agent at all
  route    TEXT NOT NULL,
  reason   TEXT NOT NULL,
  why      TEXT NOT NULL,                        -- of the last one
  times    INTEGER NOT NULL,
  first_at INTEGER NOT NULL,
  last_at  INTEGER NOT NULL,
  PRIMARY KEY (channel, place, sender, agent, route, reason)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS refused_events_last ON refused_events(last_at);

-- People who may talk to agents. A revoked one stays, so that the identities stay his.
CREATE TABLE IF NOT EXISTS users (
  name       TEXT PRIMARY KEY,
  added_at   INTEGER NOT NULL,
  added_by   TEXT NOT NULL,
  revoked_at INTEGER,
  revoked_by TEXT,
  reason     TEXT                                -- of the last change
);

CREATE TABLE IF NOT EXISTS user_roles (
  user  TEXT NOT NULL REFERENCES users(name),
  agent TEXT NOT NULL,                           -- empty: every agent
  scope TEXT NOT NULL,                           -- any | direct | group: the kind of place that it counts in
  role  TEXT NOT NULL,                           -- member | admin | owner
  at    INTEGER NOT NULL,
  by    TEXT NOT NULL,
  PRIMARY KEY (user, agent, scope)
) WITHOUT ROWID;

-- Which user a platform's id of a person is.
CREATE TABLE IF NOT EXISTS identities (
  channel TEXT NOT NULL,
  sender  TEXT NOT NULL,
  user    TEXT NOT NULL REFERENCES users(name),
  at      INTEGER NOT NULL,
  by      TEXT NOT NULL,
  PRIMARY KEY (channel, sender)
) WITHOUT ROWID;

-- Strangers who asked to talk to an agent. One that is waiting for an approver has no outcome.
CREATE TABLE IF NOT EXISTS pairings (
  code       TEXT PRIMARY KEY,
  channel    TEXT NOT NULL,
  sender     TEXT NOT NULL,
  agent      TEXT NOT NULL,
  scope      TEXT NOT NULL,                      -- direct | group: where it was asked, and where the role will count
  place      TEXT NOT NULL,
  asked_at   INTEGER NOT NULL,
  expires_at INTEGER NOT NULL,
  outcome    TEXT,                               -- approved | refused
  decided_at INTEGER,
  decided_by TEXT,
  user       TEXT                                -- whom it was bound to
);
CREATE INDEX IF NOT EXISTS pairings_sender ON pairings(channel, sender, agent, scope);

-- The epoch of the slot that serves (deploy/state.json). A daemon with a lower one begins no incarnation.
CREATE TABLE IF NOT EXISTS serving (
  id    INTEGER PRIMARY KEY CHECK (id = 1),
  epoch INTEGER NOT NULL
);

-- Daemons that were registered to work on this folder. One without ended_at is the one that works.
CREATE TABLE IF NOT EXISTS workers (
  id            TEXT PRIMARY KEY,                -- time-ordered; one for each start of a daemon
  role          TEXT NOT NULL,                   -- host | cluster; empty: no roles are configured
  release       TEXT NOT NULL,                   -- empty: it was not started from a release
  source_digest TEXT NOT NULL,
  slot          TEXT NOT NULL,                   -- blue | green; empty: no slots
  host          TEXT NOT NULL,
  pid           INTEGER NOT NULL,
  epoch         INTEGER NOT NULL,
  registered_at INTEGER NOT NULL,
  confirmed_at  INTEGER,                         -- when the running bus last read its own rows back
  ended_at      INTEGER,
  end_reason    TEXT                             -- stopped | superseded
);

-- What a worker owns. No agent and no channel has two owners: the file itself refuses the second.
CREATE TABLE IF NOT EXISTS registrations (
  worker   TEXT NOT NULL,
  kind     TEXT NOT NULL,                        -- agent | channel
  id       TEXT NOT NULL,
  ended_at INTEGER,
  PRIMARY KEY (worker, kind, id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS registrations_live ON registrations(kind, id) WHERE ended_at IS NULL;

-- When each agent last completed a turn, so that a list of workers need not open the sessions. About half a minute old.
CREATE TABLE IF NOT EXISTS agent_turns (
  agent        TEXT PRIMARY KEY,
  session      TEXT NOT NULL,
  completed_at INTEGER NOT NULL
);

-- Sessions that somebody began anew with /new: what a route names `session` is `session~generation` since then.
CREATE TABLE IF NOT EXISTS conversations (
  agent      TEXT NOT NULL,
  session    TEXT NOT NULL,
  generation INTEGER NOT NULL,
  begun_at   INTEGER NOT NULL,
  begun_by   TEXT NOT NULL,                      -- the event that asked for it: asked again, it begins nothing
  PRIMARY KEY (agent, session)
) WITHOUT ROWID;
