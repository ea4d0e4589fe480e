-- The design's tables. Forward only and online: whatever waits for a lock gives up soon and is tried again.
SET LOCAL lock_timeout = '2s';

-- Partitioned by the month of created_at, which is the time in the id (a UUIDv7), to the millisecond: whoever
-- has an id knows the one partition to look in. A partitioned table's key has to hold the partition's.
--
-- Amounts are whole paise in a BIGINT and not NUMERIC(12, 2): the unit that is meant everywhere inside, with no
-- conversion on the way, 8 bytes, and compared and summed as integers.
--
-- Nothing here is a foreign key: a month has to be detachable without looking at other tables, and whatever
-- belongs together is written by one statement. Texts sort by bytes ("C"); nobody reads them in a language's order.
CREATE TABLE transactions (
    txn_id        UUID        NOT NULL,
    created_at    TIMESTAMPTZ NOT NULL,
    updated_at    TIMESTAMPTZ NOT NULL,
    send_by       TIMESTAMPTZ NOT NULL,
    dispatched_at TIMESTAMPTZ,
    flagged_at    TIMESTAMPTZ,
    amount_paise  BIGINT      NOT NULL CHECK (amount_paise > 0),
    version       INTEGER     NOT NULL,
    sends         INTEGER     NOT NULL,
    checks        INTEGER     NOT NULL,
    psp           TEXT        COLLATE "C" NOT NULL,
    tenant        TEXT        COLLATE "C" NOT NULL,
    subject       TEXT        COLLATE "C" NOT NULL,
    device_id     TEXT        COLLATE "C" NOT NULL,
    from_vpa      TEXT        COLLATE "C" NOT NULL,
    to_vpa        TEXT        COLLATE "C" NOT NULL,
    note          TEXT        COLLATE "C" NOT NULL,
    state         TEXT        COLLATE "C" NOT NULL,
    status        TEXT        COLLATE "C" NOT NULL,
    code          TEXT        COLLATE "C",
    rrn           TEXT        COLLATE "C",
    PRIMARY KEY (txn_id, created_at)
) PARTITION BY RANGE (created_at);

CREATE INDEX idx_txn_status_created_at ON transactions (status, created_at DESC);
CREATE INDEX idx_txn_from_vpa ON transactions (from_vpa, created_at DESC);
CREATE INDEX idx_txn_to_vpa ON transactions (to_vpa, created_at DESC);
CREATE INDEX idx_txn_flagged ON transactions (flagged_at) WHERE flagged_at IS NOT NULL;

-- Everything that was said about a payment, also what changed nothing. In the payment's month, so that both go
-- together. The key makes two writers of one version impossible.
CREATE TABLE txn_history (
    txn_id     UUID        NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    at         TIMESTAMPTZ NOT NULL,
    version    INTEGER     NOT NULL,
    applied    BOOLEAN     NOT NULL,
    state      TEXT        COLLATE "C" NOT NULL,
    event      TEXT        COLLATE "C" NOT NULL,
    reason     TEXT        COLLATE "C",
    PRIMARY KEY (txn_id, version, created_at)
) PARTITION BY RANGE (created_at);

-- The first answer to a key; it follows from the transaction id. key_hash: SHA-256 of tenant, route and key.
-- Not partitioned: a key has to be unique over all months, which no partitioned table can promise.
CREATE TABLE idempotency (
    key_hash    BYTEA       NOT NULL PRIMARY KEY,
    fingerprint BYTEA       NOT NULL,
    txn_id      UUID        NOT NULL,
    created_at  TIMESTAMPTZ NOT NULL
);

CREATE INDEX idx_idempotency_created_at ON idempotency (created_at);

-- Holds what is not yet published and nothing else: a published row is deleted, so the table stays as small as
-- what waits. There is no flag `published`, and vacuum comes for few dead rows, often (below).
-- `lane` is a hash of the payment: one relay at a time publishes from a lane. `xact` is the transaction that wrote
-- the row, then `position` counts. Both order a payment's events: its next version is begun only after the one before
-- is committed. A relay reads from the oldest transaction that can still bring something, so that dead rows which an
-- old snapshot keeps from vacuum (a report, a dump) are not stepped over again and again. Transactions are this
-- cluster's: rows that wait are published before the database moves to another one by dump and restore.
-- The payload goes out byte for byte; nothing here looks into it.
CREATE TABLE outbox_events (
    position     BIGINT      GENERATED ALWAYS AS IDENTITY (CACHE 1),
    xact         BIGINT      NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
    event_id     UUID        NOT NULL,
    aggregate_id UUID        NOT NULL,
    created_at   TIMESTAMPTZ NOT NULL,
    lane         SMALLINT    NOT NULL,
    psp          TEXT        COLLATE "C" NOT NULL,
    event_type   TEXT        COLLATE "C" NOT NULL,
    payload      TEXT        COLLATE "C" NOT NULL,
    PRIMARY KEY (lane, xact, position)
);

-- Who publishes from a lane, and until when nobody else does.
CREATE TABLE outbox_lanes (
    lane        SMALLINT    NOT NULL PRIMARY KEY,
    relay       UUID,
    lease_until TIMESTAMPTZ NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 50);

INSERT INTO outbox_lanes (lane) SELECT generate_series(0, 31);

-- The relays that live: they share the lanes.
CREATE TABLE outbox_relays (
    relay       UUID        NOT NULL PRIMARY KEY,
    alive_until TIMESTAMPTZ NOT NULL
) WITH (fillfactor = 50);

-- Messages that a consumer has taken in, written together with their effect.
CREATE TABLE inbox (
    consumer   TEXT        COLLATE "C" NOT NULL,
    message_id TEXT        COLLATE "C" NOT NULL,
    at         TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (consumer, message_id)
);

CREATE INDEX idx_inbox_at ON inbox (at);

-- At most one for each payment: what happens next if nobody says anything.
CREATE TABLE timers (
    txn_id      UUID        NOT NULL PRIMARY KEY,
    due_at      TIMESTAMPTZ NOT NULL,
    lease_until TIMESTAMPTZ NOT NULL DEFAULT '-infinity',
    psp         TEXT        COLLATE "C" NOT NULL,
    kind        TEXT        COLLATE "C" NOT NULL
) WITH (fillfactor = 70);

CREATE INDEX idx_timers_kind_due_at ON timers (kind, due_at);

-- PIN blocks on their way to the network (encrypted by the device for the bank); erased once sent.
CREATE TABLE cred_blocks (
    txn_id UUID NOT NULL PRIMARY KEY,
    block  TEXT COLLATE "C" NOT NULL
);

-- Tables whose rows come and go: what died is cleared away after some thousand rows, at full speed, rather than
-- after a share of a table that is empty most of the time.
ALTER TABLE outbox_events SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0, autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 50000);
ALTER TABLE timers SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0);
ALTER TABLE cred_blocks SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0);
ALTER TABLE outbox_lanes SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
ALTER TABLE outbox_relays SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
