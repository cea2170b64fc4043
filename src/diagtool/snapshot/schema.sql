-- A snapshot as one SQLite file (.diag), schema 3. Documented in docs/snapshot-format.md.
-- Addresses are 64-bit patterns: one at or above 2^63 reads as a negative number, and
-- printf('0x%x', address) shows it right. Row numbers (id) start at 0 and have no holes.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,     -- kind, pid, runtime, captured_at, pause_ms ...
    value                       -- a number or text; JSON for cmdline, details, tables
);

CREATE TABLE kind (id INTEGER PRIMARY KEY, name TEXT);      -- what stack.kind means

CREATE TABLE state (id INTEGER PRIMARY KEY, name TEXT);     -- what stack.state means

CREATE TABLE frame (
    id       INTEGER PRIMARY KEY,
    function TEXT,              -- qualified name where the version has it
    file     TEXT,
    line     INTEGER,
    module   TEXT,
    language TEXT,              -- python, c ...
    library  TEXT               -- the shared library of a native frame
);

CREATE TABLE trace (
    id     INTEGER PRIMARY KEY, -- 0 is the empty trace
    parent INTEGER,             -- the trace without its innermost frame; always smaller than id
    frame  INTEGER              -- its innermost frame; -1 in the empty trace
);

CREATE TABLE wait (id INTEGER PRIMARY KEY, name TEXT);      -- 0 is "not waiting"

CREATE TABLE thing (
    id           INTEGER PRIMARY KEY,
    address      INTEGER,
    type         TEXT,          -- asyncio.queues.Queue ...
    detail       TEXT,          -- its state in words
    state        TEXT,          -- JSON object
    refs         INTEGER,       -- reference count
    from_waiters INTEGER,       -- how many of these come from the stacks that wait on it
    exclusive    INTEGER,       -- 1: nothing else can reach it
    held_by      TEXT           -- JSON array of retention paths, nearest first
);

CREATE TABLE holder (id INTEGER PRIMARY KEY, path TEXT);    -- where stacks are kept, in words

CREATE TABLE stack (
    id           INTEGER PRIMARY KEY,
    kind         INTEGER,
    state        INTEGER,
    address      INTEGER,       -- of the task, coroutine ... object; the tid of a thread; a goroutine's number
    trace        INTEGER,
    wait         INTEGER,
    thing        INTEGER,       -- what it waits on; -1: nothing known
    thread       INTEGER,       -- tid; 0: unknown
    loop         INTEGER,       -- address of the event loop; 0: none
    created_by   INTEGER,       -- trace of the place of creation; 0: not recorded
    parent       INTEGER,       -- address of the stack that made it (goroutines); 0: not known
    merged       INTEGER,       -- trace with native frames between those of Python; 0: not unwound
    holder       INTEGER,       -- who keeps it; -1: none found
    stuck        INTEGER,       -- 1: nothing that can still run reaches what it waits on
    wait_seconds REAL,          -- NULL: unknown
    age_seconds  REAL,          -- NULL: unknown
    name         TEXT
);

CREATE TABLE thread (
    id            INTEGER PRIMARY KEY,
    tid           INTEGER,
    stack         INTEGER,
    name          TEXT,
    comm          TEXT,
    ident         INTEGER,      -- threading.get_ident()
    python        INTEGER,      -- 1: registered with an interpreter
    interpreter   INTEGER,
    daemon        INTEGER,
    holds_gil     INTEGER,
    waits_for_gil INTEGER,
    collecting    INTEGER,      -- 1: the garbage collector runs in it
    state         TEXT,         -- R, S, D ... before the stop
    syscall       INTEGER,
    wchan         TEXT,
    cpu_seconds   REAL,
    running_loop  INTEGER,
    registers     TEXT          -- JSON object
);

CREATE TABLE await_edge (awaiting INTEGER, awaited INTEGER);    -- stacks: who awaits whom

CREATE TABLE label (stack INTEGER, name TEXT, value TEXT);      -- context variables

CREATE TABLE record (
    tbl   TEXT,                 -- loops, interpreters, executors ...
    row   INTEGER,
    value TEXT                  -- JSON object
);

CREATE TABLE warning (id INTEGER PRIMARY KEY, text TEXT);       -- what could not be read, and why

-- The frames of every trace that a stack has; depth 0 is the innermost.
CREATE VIEW trace_frame AS
WITH RECURSIVE walk (trace, node, depth) AS (
    SELECT trace, trace, 0 FROM stack WHERE trace > 0
    UNION
    SELECT created_by, created_by, 0 FROM stack WHERE created_by > 0
    UNION
    SELECT merged, merged, 0 FROM stack WHERE merged > 0
    UNION
    SELECT walk.trace, trace.parent, walk.depth + 1
    FROM walk JOIN trace ON trace.id = walk.node
    WHERE trace.parent > 0
)
SELECT walk.trace, walk.depth, frame.function, frame.file, frame.line, frame.module, frame.language
FROM walk JOIN trace ON trace.id = walk.node JOIN frame ON frame.id = trace.frame;

-- Every trace as one line, innermost frame first.
CREATE VIEW trace_text AS
SELECT trace, group_concat(function || ' (' || file || ':' || coalesce(line, '?') || ')', ' < ') AS text
FROM (SELECT * FROM trace_frame ORDER BY trace, depth)
GROUP BY trace;

-- Every stack with its codes resolved.
CREATE VIEW stack_text AS
SELECT stack.id,
       kind.name AS kind,
       state.name AS state,
       printf('0x%x', stack.address) AS address,
       stack.name,
       wait.name AS wait,
       thing.type AS waits_on,
       CASE WHEN thing.id IS NOT NULL THEN printf('0x%x', thing.address) END AS waits_on_address,
       thing.detail AS waits_on_detail,
       holder.path AS held_by,
       stack.stuck,
       stack.thread,
       stack.wait_seconds,
       stack.age_seconds,
       trace_text.text AS frames
FROM stack
JOIN kind ON kind.id = stack.kind
JOIN state ON state.id = stack.state
LEFT JOIN wait ON wait.id = stack.wait
LEFT JOIN thing ON thing.id = stack.thing
LEFT JOIN holder ON holder.id = stack.holder
LEFT JOIN trace_text ON trace_text.trace = stack.trace;

-- Alike stacks counted, most first.
CREATE VIEW cluster_text AS
SELECT count(*) AS count, kind, state, wait, frames
FROM stack_text
GROUP BY kind, state, wait, frames
ORDER BY count(*) DESC;
