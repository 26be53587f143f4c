"""What the engine promises, by number, and the error of who finds a promise broken."""

from __future__ import annotations

RULES = {
    1: "an acknowledged record is never lost, changed or reordered",
    2: "one effective writer per claim",
    3: "the fold from the start, the fold from a snapshot and the live state are the same",
    4: "a recorded result never changes, its step does not run again, attempts stay within the policy",
    5: "no effect comes from a result that is not in the log",
    6: "every run has exactly one end, and everybody is told the same",
    7: "a timer fires once, never early, nor late because a clock was set",
    8: "a signal is consumed at most once, in order, none is lost",
    9: "a start is idempotent",
    10: "a cancellation reaches everything it should",
    11: "nondeterministic code is found, and sound code is not called so",
    12: "a projection is what the log says, and equals its rebuild",
    13: "positions never go back",
    14: "when the faults are over every run ends or waits for something named",
    17: "what a run does stops no other run, and no owner falls over",
    18: "every request is served, refused to somebody, or pending with a reason",
    19: "a value comes back as it was or is refused, and what was given is taken by value",
    20: "what its producer has taken back has no effect",
    21: "the first answer or time-out ends a callback, and nobody answers without its id",
    22: "what code publishes is in the log once, in the order of its calls",
    23: "a message is sent after its cause, in order, without gaps, and until it has come",
}
"""Those of the promises that can be told from what happens; old histories (15) and what is left behind (16) have tests of their
own."""


class Broken(AssertionError):
    """A promise is broken."""

    def __init__(self, rule: int, what: str) -> None:
        super().__init__(f"rule {rule} ({RULES[rule]}): {what}")
        self.rule = rule
