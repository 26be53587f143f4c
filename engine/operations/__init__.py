"""The kinds of operations that a workflow can await. One module per kind: records, rules, open state, call, words, story.

    step     a function that runs on a worker
    sleep    a time
    signal   data that somebody sends to the run
    callback an answer that the code asks somebody outside for, by an id
    condition a check that a worker runs again and again, until it holds
    child    another run

What a workflow tells and never waits for (`told.py`) has modules of its own:

    publish  values that everybody may read while the run goes on

A new kind is a module here that ends in a `Kind` (`kind.py`), a word in `KINDS` or `TOLD`, its records in `events.RunEvent`, and
a method of `Step`; ARCHITECTURE.md lists what it adds to clients, commands, documents and tests. The module of a kind imports
the core and values, and never another kind. All tables below are made from these two, once, at import. Pure.
"""

from __future__ import annotations

from . import callback, child, condition, publish, signal, sleep, step

KINDS = (step.KIND, sleep.KIND, signal.KIND, callback.KIND, condition.KIND, child.KIND)
TOLD = (publish.KIND,)

RECORDS = {str(record.model_fields["type"].default): record for kind in (*KINDS, *TOLD) for record in kind.records}
BY_NAME = {kind.name: kind for kind in KINDS}
KIND_OF = {str(record.model_fields["type"].default): kind for kind in KINDS for record in kind.records}
COUNTED = {name: record.counted_as for name, record in RECORDS.items() if record.counted_as is not None}
EARLY = frozenset(name for name, record in RECORDS.items() if record.comes_early)
REFUSALS = {name: record.when_refused for name, record in RECORDS.items() if record.when_refused}
RULES = {name: rule for kind in (*KINDS, *TOLD) for name, rule in kind.rules.items()}
OPEN = {kind.open.kind: kind.open for kind in KINDS}
CALLS = {kind.call.kind: kind.call for kind in KINDS}
SETTLED_BY = {
    outcome: kind.call for kind in reversed(KINDS) for outcome in (*kind.call.settles, *kind.call.progress, *kind.call.begins)
}
GIVES_BACK = {outcome: rule for kind in KINDS for outcome, rule in kind.gives_back.items()}
TELLS = {name: tell for kind in KINDS for name, tell in kind.tells.items()}
AT_END = tuple(kind.at_end for kind in KINDS if kind.at_end is not None)
START_REFUSED = tuple(kind.start_refused for kind in KINDS if kind.start_refused is not None)
ENDS = {outcome: tell for kind in KINDS for outcome, tell in kind.ends.items()}
