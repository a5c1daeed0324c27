-- mailbox.db: answers on the `local` channel, kept until a client has read past them. Only the daemon writes it.

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
  -- This is what makes the channel deduplicate: a re-sent row is the same row.
  UNIQUE (agent, session, message_out_id)
);
CREATE INDEX IF NOT EXISTS mailbox_by_name ON mailbox(mailbox, cursor);
CREATE INDEX IF NOT EXISTS mailbox_by_reply ON mailbox(agent, session, in_reply_to);
