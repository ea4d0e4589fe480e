-- The embedded bus: its own file, so that publishing never waits for a payment's commit.

CREATE TABLE bus_messages (
    offset_id INTEGER PRIMARY KEY AUTOINCREMENT,
    topic     TEXT    NOT NULL,
    key       TEXT    NOT NULL,
    event_id  TEXT    NOT NULL,
    headers   TEXT    NOT NULL,
    payload   TEXT    NOT NULL,
    at        INTEGER NOT NULL
) STRICT;

CREATE INDEX idx_bus_messages_topic ON bus_messages (topic, offset_id);
CREATE INDEX idx_bus_messages_at ON bus_messages (at);

CREATE TABLE bus_positions (
    consumer TEXT    NOT NULL,
    topic    TEXT    NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (consumer, topic)
) STRICT, WITHOUT ROWID;
