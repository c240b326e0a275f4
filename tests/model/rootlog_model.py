"""An explicit-state model of the root log and gc: every interleaving of a few processes is tried.

There is one chunk. Each writer wants to record a version that consists of it: it relies on a pack
that has the chunk already, or stores a pack of its own. Collectors remove what nothing needs, and
may move the chunk to another pack. A bystander publishes roots that change nothing, so that old
ones are pruned. Any process may stop for ever between two steps, as all orders are tried.

Each rule of the protocol can be dropped by leaving its name out of `rules`, to see that it is
needed: then `explore` must find a state that breaks the promise.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

RULES = frozenset(
    {
        # The root log
        "a root is created only if absent",
        "the successor's base is looked at again after publishing",
        "a base is told by its content, not only by its number",
        "a known root is told by its content, not only by its number",
        "roots are pruned in ascending order",
        # Writers
        "a lost race is begun again with the newest root",
        "packs relied on must exist",
        "packs relied on must not be doomed",
        "own packs are checked like others",
        "own packs are rescued when condemned",
        "packs get names never used before",
        # Collectors
        "condemning succeeds only the root that was marked",
        "dead rows leave the indexes when their packs are condemned",
        "only what is still condemned is doomed",
        "only what was published as doomed is deleted",
        "doomed names are kept until they are deleted",
    }
)

Pack = tuple[str, int]
OLD: Pack = ("old", 0)


class Root(NamedTuple):
    """One root; `made_by` (with the number) is its identity, `before` that of its predecessor."""

    number: int
    made_by: str
    before: str
    commits: frozenset[str]
    listed: frozenset[Pack]
    condemned: frozenset[Pack] = frozenset()
    doomed: frozenset[Pack] = frozenset()


class Writer(NamedTuple):
    """A writer: its next step, the newest root it has read, the one it works on or has published,
    its own pack, and the try it is at."""

    step: str
    known: Root
    base: Root
    own: Pack | None = None
    attempt: int = 0
    limit: int = 0


class Collector(NamedTuple):
    """A collector: its next step, the root it marked, and what it decided."""

    step: str
    base: Root
    runs: int
    target: Root | None = None
    garbage: frozenset[Pack] = frozenset()
    attempt: int = 0


class Bystander(NamedTuple):
    """Publishes `left` more roots; prunes up to `limit` after each."""

    left: int
    limit: int = 0


Process = Writer | Collector | Bystander


class State(NamedTuple):
    """Everything: the roots and packs that exist, the processes, and what was acknowledged."""

    roots: tuple[Root, ...]
    packs: frozenset[Pack]
    processes: tuple[Process, ...]
    acknowledged: frozenset[str]


@dataclass(frozen=True, slots=True)
class Setup:
    """How many processes of each kind there are, and how many roots are kept (None: all)."""

    writers: int
    collectors: int = 0
    runs: int = 1
    bystander: int = 0
    keep: int | None = None
    attempts: int = 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many states there are, and the steps to one that breaks the promise, if there is one."""

    states: int
    counterexample: tuple[str, ...] | None


class Model:
    """The protocol with some of its rules."""

    def __init__(self, setup: Setup, rules: frozenset[str] = RULES) -> None:
        assert rules <= RULES
        self.setup = setup
        self.rules = rules
        self.names = [
            *(f"writer {n}" for n in range(setup.writers)),
            *(f"gc {n}" for n in range(setup.collectors)),
            *(["bystander"] if setup.bystander else []),
        ]

    def initial(self) -> State:
        """One root, which lists a pack that nothing needs any more."""
        root = Root(1, "init", "", frozenset(), frozenset({OLD}))
        processes: list[Process] = [Writer("start", root, root)] * self.setup.writers
        processes += [Collector("start", root, self.setup.runs)] * self.setup.collectors
        processes += [Bystander(self.setup.bystander)] if self.setup.bystander else []
        return State((root,), frozenset({OLD}), tuple(processes), frozenset())

    def explore(self, most: int = 1_000_000) -> Outcome:
        """Every state that can be reached, breadth first, up to the first that is wrong."""
        first = self.initial()
        came_from: dict[State, tuple[State, str] | None] = {first: None}
        waiting = deque([first])
        while waiting:
            state = waiting.popleft()
            if (wrong := broken(state)) is not None:
                return Outcome(len(came_from), (*path(came_from, state), wrong))
            for label, successor in self.successors(state):
                if successor not in came_from:
                    came_from[successor] = (state, label)
                    waiting.append(successor)
            assert len(came_from) <= most, "more states than expected"
        return Outcome(len(came_from), None)

    def successors(self, state: State) -> Iterator[tuple[str, State]]:
        """What each process could do next."""
        for at, (name, process) in enumerate(zip(self.names, state.processes, strict=True)):
            match process:
                case Writer():
                    results = self.write(state, name, process)
                case Collector():
                    results = self.collect(state, name, process)
                case Bystander():
                    results = self.stand_by(state, process)
            for label, changed, after in results:
                processes = (*state.processes[:at], after, *state.processes[at + 1 :])
                yield f"{name}: {label}", changed._replace(processes=processes)

    # The log

    def put(self, state: State, root: Root) -> State | None:
        """The state with one more root; None when the number is taken."""
        newest = state.roots[-1].number
        if "a root is created only if absent" in self.rules:
            pruning = self.setup.keep is not None
            taken = any(root.number == other.number for other in state.roots)
            if taken or (not pruning and root.number <= newest):
                return None
        roots = [other for other in state.roots if other.number != root.number]
        roots = sorted([*roots, root], key=lambda other: other.number)
        if self.setup.keep is None:
            # Of the others only the fact that they are there matters.
            roots = roots[-1:]
        return state._replace(roots=tuple(roots))

    def newest(self, state: State, known: Root) -> Root:
        """The newest root as a process finds it that last saw `known`."""
        numbers = {root.number: root for root in state.roots}
        there = numbers.get(known.number)
        if "a known root is told by its content, not only by its number" in self.rules:
            there = known if there == known else None
        if there is None:
            return state.roots[-1]
        while there.number + 1 in numbers:
            there = numbers[there.number + 1]
        return there

    def linked(self, state: State, root: Root) -> bool:
        """Whether a root just published stands in the chain."""
        if (
            self.setup.keep is None
            or "the successor's base is looked at again after publishing" not in self.rules
        ):
            return True
        numbers = {other.number: other for other in state.roots}
        before, after = numbers.get(root.number - 1), numbers.get(root.number + 1)
        if before is not None:
            by_content = "a base is told by its content, not only by its number" in self.rules
            if not by_content or before.made_by == root.before:
                return True
        if state.roots[-1].number == root.number:
            return True
        there = numbers.get(root.number)
        return after is not None and there is not None and after.before == there.made_by

    def prune(self, state: State, limit: int) -> State | None:
        """The state with one root less; None when there is none to prune."""
        old = [root for root in state.roots if root.number <= limit]
        if not old:
            return None
        gone = old[0] if "roots are pruned in ascending order" in self.rules else old[-1]
        return state._replace(roots=tuple(root for root in state.roots if root != gone))

    # Processes: each yields (what it does, the state without itself, itself afterwards)

    def write(self, state: State, name: str, me: Writer) -> Iterator[tuple[str, State, Process]]:
        match me.step:
            case "start":
                root = self.newest(state, me.known)
                after = me._replace(step="read" if root.listed else "store", known=root, base=root)
                yield f"look at root {root.number}", state, after
            case "store":
                fresh = "packs get names never used before" in self.rules
                own = (name, me.attempt) if fresh else ("the pack", 0)
                changed = state._replace(packs=state.packs | {own})
                yield f"store {own}", changed, me._replace(step="read", own=own)
            case "read":
                base = self.newest(state, me.known)
                after = me._replace(step="check", known=base, base=base)
                yield f"base on root {base.number}", state, after
            case "check":
                safe = self.safe(state, me)
                after = me._replace(step="look") if safe else self.again(me)
                yield f"check packs: {'safe' if safe else 'not safe'}", state, after
            case "look":
                there = next((r for r in state.roots if r.number == me.base.number), None)
                if there is None and self.setup.keep is not None:
                    yield "base is gone", state, self.lost(me)
                    return
                by_content = "a base is told by its content, not only by its number" in self.rules
                if there is not None and by_content and there != me.base:
                    yield "base is another", state, self.lost(me)
                    return
                yield "base is there", state, me._replace(step="publish")
            case "publish":
                root = self.version(name, me)
                if (changed := self.put(state, root)) is None:
                    yield f"root {root.number} is taken", state, self.lost(me)
                else:
                    yield (
                        f"publish root {root.number}",
                        changed,
                        me._replace(step="link", base=root),
                    )
            case "link":
                if not self.linked(state, me.base):
                    yield "not in the chain", state, self.again(me)
                    return
                keep = self.setup.keep
                limit = me.base.number - keep if keep is not None else 0
                changed = state._replace(acknowledged=state.acknowledged | {name})
                yield "acknowledged", changed, me._replace(step="prune", limit=limit)
            case "prune":
                if (pruned := self.prune(state, me.limit)) is None:
                    return
                yield "prune", pruned, me

    def safe(self, state: State, me: Writer) -> bool:
        if me.own is not None:
            if "own packs are checked like others" not in self.rules:
                return True
            pack = me.own
        elif me.base.listed:
            pack = min(me.base.listed)
        else:
            return False
        if "packs relied on must exist" in self.rules and pack not in state.packs:
            return False
        return not ("packs relied on must not be doomed" in self.rules and pack in me.base.doomed)

    def version(self, name: str, me: Writer) -> Root:
        own = frozenset({me.own} if me.own else ())
        rescued = own | me.base.listed
        if "own packs are rescued when condemned" not in self.rules:
            rescued = frozenset()
        return Root(
            me.base.number + 1,
            f"{name} try {me.attempt}",
            me.base.made_by,
            me.base.commits | {name},
            me.base.listed | own,
            me.base.condemned - rescued,
            me.base.doomed,
        )

    def again(self, me: Writer) -> Writer:
        """Begin from the start, or give up: nothing was acknowledged, so nothing is lost."""
        attempt = me.attempt + 1
        step = "start" if attempt < self.setup.attempts else "gave up"
        return me._replace(step=step, own=None, attempt=attempt)

    def lost(self, me: Writer) -> Writer:
        if "a lost race is begun again with the newest root" in self.rules:
            return me._replace(step="read")
        # Only the number is taken from the newer root, not what it says.
        return me._replace(step="look", base=me.base._replace(number=me.base.number + 1))

    def collect(
        self, state: State, name: str, me: Collector
    ) -> Iterator[tuple[str, State, Process]]:
        newest = state.roots[-1]
        match me.step:
            case "start":
                if me.runs:
                    yield f"mark root {newest.number}", state, me._replace(step="plan", base=newest)
            case "plan":
                needed = frozenset({min(me.base.listed)}) if me.base.commits else frozenset()
                garbage = state.packs - needed
                yield f"garbage {sorted(garbage)}", state, self.planned(me, needed, garbage)
                if needed:
                    copied = (name, me.attempt)
                    changed = state._replace(packs=state.packs | {copied})
                    after = self.planned(me, frozenset({copied}), state.packs)
                    yield f"copy to {copied}", changed, after
            case "condemn":
                assert me.target is not None
                target = me.target._replace(made_by=f"{name} condemn {me.runs}")
                if "condemning succeeds only the root that was marked" not in self.rules:
                    # Whatever the newest root says, the plan is put on top of it.
                    target = target._replace(
                        number=newest.number + 1,
                        before=newest.made_by,
                        commits=newest.commits,
                        doomed=newest.doomed,
                    )
                if (changed := self.put(state, target)) is None:
                    after = me._replace(step="start", target=None, attempt=me.attempt + 1)
                    yield "lost the race", state, after
                    return
                two_phases = "only what was published as doomed is deleted" in self.rules
                after = me._replace(step="doom" if two_phases else "delete", base=target)
                yield f"condemn {sorted(target.condemned)}", changed, after._replace(target=None)
            case "doom":
                doomed = newest.condemned
                if "only what is still condemned is doomed" not in self.rules:
                    doomed = me.garbage
                target = newest._replace(
                    number=newest.number + 1,
                    made_by=f"{name} doom {me.runs}",
                    before=newest.made_by,
                    condemned=frozenset(),
                    doomed=newest.doomed | doomed,
                )
                # Reading and publishing is one step: a lost race only means doing both again.
                changed = self.put(state, target)
                assert changed is not None
                keeps = "doomed names are kept until they are deleted" in self.rules
                after = me._replace(step="delete" if keeps else "clear", garbage=target.doomed)
                yield f"doom {sorted(target.doomed)}", changed, after
            case "delete":
                if not (left := me.garbage & state.packs):
                    keeps = "doomed names are kept until they are deleted" in self.rules
                    after = me._replace(step="clear" if keeps else "start")
                    yield "all deleted", state, after
                    return
                for pack in sorted(left):
                    changed = state._replace(packs=state.packs - {pack})
                    yield f"delete {pack}", changed, me._replace(garbage=me.garbage - {pack})
            case "clear":
                target = newest._replace(
                    number=newest.number + 1,
                    made_by=f"{name} clear {me.runs}",
                    before=newest.made_by,
                    doomed=frozenset(p for p in newest.doomed if p in state.packs)
                    if "doomed names are kept until they are deleted" in self.rules
                    else frozenset(),
                )
                changed = self.put(state, target)
                assert changed is not None
                keeps = "doomed names are kept until they are deleted" in self.rules
                after = me._replace(step="start" if keeps else "delete", runs=me.runs - 1)
                yield "clear", changed, after._replace(attempt=me.attempt + 1)

    def planned(
        self, me: Collector, needed: frozenset[Pack], garbage: frozenset[Pack]
    ) -> Collector:
        listed = needed
        if "dead rows leave the indexes when their packs are condemned" not in self.rules:
            listed = needed | me.base.listed
        target = me.base._replace(
            number=me.base.number + 1,
            before=me.base.made_by,
            listed=listed,
            condemned=(me.base.condemned | garbage) - me.base.doomed,
        )
        if not garbage:
            return me._replace(step="doom", garbage=garbage)
        return me._replace(step="condemn", target=target, garbage=garbage)

    def stand_by(self, state: State, me: Bystander) -> Iterator[tuple[str, State, Process]]:
        if (pruned := self.prune(state, me.limit)) is not None:
            yield "prune", pruned, me
        elif me.left:
            newest = state.roots[-1]
            number = newest.number + 1
            root = newest._replace(
                number=number, made_by=f"bystander {me.left}", before=newest.made_by
            )
            changed = self.put(state, root)
            assert changed is not None
            after = Bystander(me.left - 1, number - self.setup.keep if self.setup.keep else 0)
            yield f"publish root {number}", changed, after


def broken(state: State) -> str | None:
    """What is wrong with a state, or None."""
    newest = state.roots[-1]
    if lost := state.acknowledged - newest.commits:
        return f"BROKEN: acknowledged, but not in root {newest.number}: {sorted(lost)}"
    if newest.commits and not newest.listed:
        return f"BROKEN: root {newest.number} lists no pack that has the chunk"
    if newest.commits and (gone := newest.listed - state.packs):
        return f"BROKEN: root {newest.number} lists packs that are gone: {sorted(gone)}"
    return None


def path(came_from: dict[State, tuple[State, str] | None], state: State) -> tuple[str, ...]:
    """The steps that led to a state."""
    steps = []
    while (step := came_from[state]) is not None:
        state, label = step
        steps.append(label)
    return tuple(reversed(steps))
