-- Each kind of timer is claimed on its own, so that one that is held up never holds up the other.
CREATE INDEX idx_timers_kind_due_at ON timers (kind, due_at);
DROP INDEX idx_timers_due_at;
