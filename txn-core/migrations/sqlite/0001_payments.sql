-- Times are milliseconds since 1970 (UTC), amounts paise, ids the 16 bytes of the UUIDv7.

CREATE TABLE transactions (
    txn_id        BLOB    NOT NULL PRIMARY KEY,
    psp           TEXT    NOT NULL,
    tenant        TEXT    NOT NULL,
    subject       TEXT    NOT NULL,
    device_id     TEXT    NOT NULL,
    from_vpa      TEXT    NOT NULL,
    to_vpa        TEXT    NOT NULL,
    amount_paise  INTEGER NOT NULL CHECK (amount_paise > 0),
    note          TEXT    NOT NULL,
    state         TEXT    NOT NULL,
    status        TEXT    NOT NULL,
    version       INTEGER NOT NULL,
    code          TEXT,
    rrn           TEXT,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL,
    send_by       INTEGER NOT NULL,
    dispatched_at INTEGER,
    sends         INTEGER NOT NULL,
    checks        INTEGER NOT NULL,
    flagged_at    INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX idx_txn_status_created_at ON transactions (status, created_at DESC);
CREATE INDEX idx_txn_flagged ON transactions (flagged_at) WHERE flagged_at IS NOT NULL;

-- Everything that was said about a payment, also what changed nothing (applied = 0).
CREATE TABLE txn_history (
    txn_id  BLOB    NOT NULL REFERENCES transactions (txn_id),
    version INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    state   TEXT    NOT NULL,
    event   TEXT    NOT NULL,
    reason  TEXT,
    applied INTEGER NOT NULL,
    PRIMARY KEY (txn_id, version)
) STRICT, WITHOUT ROWID;

-- The first answer to a key; it follows from the transaction id. key_hash: SHA-256 of tenant, route and key.
CREATE TABLE idempotency (
    key_hash    BLOB    NOT NULL PRIMARY KEY,
    fingerprint BLOB    NOT NULL,
    txn_id      BLOB    NOT NULL,
    created_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX idx_idempotency_created_at ON idempotency (created_at);

-- Holds what is not yet published and nothing else: a published row is deleted, so the table stays small.
CREATE TABLE outbox_events (
    position     INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id     BLOB    NOT NULL,
    aggregate_id TEXT    NOT NULL,
    event_type   TEXT    NOT NULL,
    payload      TEXT    NOT NULL,
    created_at   INTEGER NOT NULL
) STRICT;

-- Messages that a consumer has taken in, written together with their effect.
CREATE TABLE inbox (
    consumer   TEXT    NOT NULL,
    message_id TEXT    NOT NULL,
    at         INTEGER NOT NULL,
    PRIMARY KEY (consumer, message_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX idx_inbox_at ON inbox (at);

-- At most one for each payment: what happens next if nobody says anything.
CREATE TABLE timers (
    txn_id      BLOB    NOT NULL PRIMARY KEY REFERENCES transactions (txn_id),
    kind        TEXT    NOT NULL,
    due_at      INTEGER NOT NULL,
    lease_until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX idx_timers_due_at ON timers (due_at);

-- PIN blocks on their way to the network (encrypted by the device for the bank); erased once sent.
CREATE TABLE cred_blocks (
    txn_id BLOB NOT NULL PRIMARY KEY REFERENCES transactions (txn_id),
    block  TEXT NOT NULL
) STRICT, WITHOUT ROWID;
