"""The protocol keeps its promise in every order of steps, and needs every one of its rules."""

import pytest
from rootlog_model import RULES, Model, Setup

SMALL = [
    Setup(writers=2, collectors=1),
    Setup(writers=1, collectors=1, runs=2),
    Setup(writers=1, collectors=2, attempts=1),
    Setup(writers=2, bystander=4, keep=1, attempts=1),
    Setup(writers=2, bystander=4, keep=2, attempts=1),
]
LARGE = [
    Setup(writers=1, collectors=2),
    Setup(writers=2, collectors=1, runs=2),
    Setup(writers=3, collectors=1, attempts=1),
    Setup(writers=2, collectors=1, attempts=3),
    Setup(writers=3, bystander=4, keep=1, attempts=1),
    Setup(writers=2, bystander=7, keep=2, attempts=2),
]

# Where dropping the rule shows; with the fewest processes that can show it.
SHOWN_BY = {
    "a base is told by its content, not only by its number": SMALL[3],
    "a known root is told by its content, not only by its number": SMALL[3],
    "a lost race is begun again with the newest root": SMALL[0],
    "a root is created only if absent": SMALL[0],
    "condemning succeeds only the root that was marked": SMALL[0],
    "dead rows leave the indexes when their packs are condemned": SMALL[0],
    "doomed names are kept until they are deleted": SMALL[1],
    "only what is still condemned is doomed": SMALL[1],
    "only what was published as doomed is deleted": SMALL[1],
    "own packs are checked like others": SMALL[1],
    "own packs are rescued when condemned": SMALL[1],
    "packs get names never used before": LARGE[0],
    "packs relied on must exist": SMALL[1],
    "packs relied on must not be doomed": SMALL[1],
    "roots are pruned in ascending order": SMALL[3],
    "the successor's base is looked at again after publishing": SMALL[3],
}


@pytest.mark.parametrize("setup", SMALL, ids=str)
def test_the_promise_is_kept(setup: Setup) -> None:
    outcome = Model(setup).explore()
    assert outcome.counterexample is None, "\n".join(outcome.counterexample)
    assert outcome.states > 500


@pytest.mark.slow
@pytest.mark.parametrize("setup", LARGE, ids=str)
def test_the_promise_is_kept_by_more_processes(setup: Setup) -> None:
    outcome = Model(setup).explore(5_000_000)
    assert outcome.counterexample is None, "\n".join(outcome.counterexample)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_no_rule_can_be_left_out(rule: str) -> None:
    outcome = Model(SHOWN_BY[rule], RULES - {rule}).explore()
    assert outcome.counterexample is not None
    assert outcome.counterexample[-1].startswith("BROKEN")


def test_writers_can_succeed_side_by_side() -> None:
    """The promise is not kept by never doing anything."""
    setup = Setup(writers=2, collectors=1)
    model = Model(setup)
    waiting, seen = [model.initial()], set()
    best = 0
    while waiting:
        state = waiting.pop()
        if state not in seen:
            seen.add(state)
            best = max(best, len(state.acknowledged))
            waiting.extend(successor for _, successor in model.successors(state))
    assert best == setup.writers
