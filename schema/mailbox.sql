-- mailbox.db: answers on the `local` channel, kept for `retention.mailbox_s`, read or not. Only the daemon writes it.

CREATE TABLE IF NOT EXISTS mailbox (
  cursor         INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused: a client's cursor stays valid for ever
  mailbox        TEXT NOT NULL,
  message_out_id TEXT NOT NULL,
  agent          TEXT NOT NULL,
  session        TEXT NOT NULL,
  in_reply_to    TEXT,
  kind           TEXT NOT NULL,
  thread_id      TEXT,
  content        TEXT NOT NULL,
  delivered_at   INTEGER NOT NULL,               -- epoch milliseconds
  final          INTEGER NOT NULL DEFAULT 1,     -- 0: said in the middle of a turn; it answers no message
  files          TEXT,                           -- JSON: the files that go with it (sent/ of the session), or NULL
  -- This is what makes the channel deduplicate: a re-sent row is the same row.
  UNIQUE (agent, session, message_out_id)
);
CREATE INDEX IF NOT EXISTS mailbox_by_name ON mailbox(mailbox, cursor);

-- Which messages an entry answers: its in_reply_to, and the ids in its content's "answers" (one turn may answer a batch).
-- A client that waits for one message's answer finds it here, however many entries there are.
CREATE TABLE IF NOT EXISTS mailbox_replies (
  agent      TEXT NOT NULL,
  session    TEXT NOT NULL,
  message_id TEXT NOT NULL,
  cursor     INTEGER NOT NULL REFERENCES mailbox(cursor),
  PRIMARY KEY (agent, session, message_id, cursor)
) WITHOUT ROWID;
-- An entry that is pruned takes its rows here along, at a cost that does not grow with the others.
CREATE INDEX IF NOT EXISTS mailbox_replies_cursor ON mailbox_replies(cursor);
