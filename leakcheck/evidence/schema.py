"""The tables of a store.

A run is one campaign for one target, or a run of ``verify``, whose parts are the runs that have it as `parent`. JSON is
text, so that the functions of SQLite read it. Times are seconds since 1970; `at_s` counts from the begin of its run.
"""

VERSION = 2
"""Of the tables (``PRAGMA user_version``)."""
APPLICATION = 0x6C65616B
"""``leak``, for file(1) (``PRAGMA application_id``)."""

TABLES = """
CREATE TABLE machines (
    id INTEGER PRIMARY KEY,
    facts TEXT NOT NULL UNIQUE
);
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uid TEXT NOT NULL UNIQUE,
    parent INTEGER REFERENCES runs ON DELETE CASCADE,
    part TEXT NOT NULL,
    command TEXT NOT NULL,
    target TEXT NOT NULL,
    version TEXT NOT NULL,
    options TEXT NOT NULL,
    tested TEXT NOT NULL,
    machine INTEGER NOT NULL REFERENCES machines,
    began REAL NOT NULL,
    ended REAL,
    took REAL NOT NULL DEFAULT 0,
    wanted INTEGER,
    state TEXT NOT NULL CHECK (state IN ('running', 'interrupted', 'ended')),
    verdict TEXT,
    kept TEXT NOT NULL DEFAULT '',
    settings TEXT NOT NULL DEFAULT '',
    changed TEXT NOT NULL DEFAULT '',
    result TEXT
);
CREATE TABLE trials (
    run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
    number INTEGER NOT NULL,
    at_s REAL NOT NULL,
    what TEXT NOT NULL,
    outcome TEXT NOT NULL,
    trial TEXT NOT NULL,
    PRIMARY KEY (run, number)
) WITHOUT ROWID;
CREATE TABLE findings (
    run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
    number INTEGER NOT NULL,
    id TEXT NOT NULL,
    outcome TEXT NOT NULL,
    replay TEXT NOT NULL,
    finding TEXT NOT NULL,
    PRIMARY KEY (run, number)
) WITHOUT ROWID;
CREATE INDEX findings_by_id ON findings (id);
CREATE TABLE samples (
    run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
    at_s REAL NOT NULL,
    rss_kib INTEGER NOT NULL,
    fds INTEGER NOT NULL,
    cpu_s REAL NOT NULL,
    load REAL NOT NULL,
    PRIMARY KEY (run, at_s)
) WITHOUT ROWID;
"""
