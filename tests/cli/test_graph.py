from hypothesis import given
from hypothesis import strategies as st

from mstore.cli.graph import Graph


def draw(*commits: tuple[str, str]) -> list[str]:
    """The rows for commits named by letters, each with the letters of its parents."""
    graph = Graph()
    return [
        row
        for name, parents in commits
        for row in graph.draw(name.encode(), [one.encode() for one in parents], [name])
    ]


def test_one_line_of_history() -> None:
    assert draw(("c", "b"), ("b", "a"), ("a", "")) == ["* c", "* b", "* a"]


def test_a_branch() -> None:
    assert draw(("d", "b"), ("c", "b"), ("b", "a"), ("a", "")) == [
        "* d",
        "| * c",
        "|/",
        "* b",
        "* a",
    ]


def test_a_merge() -> None:
    assert draw(("m", "bc"), ("b", "a"), ("c", "a"), ("a", "")) == [
        "* m",
        "|\\",
        "* | b",
        "| * c",
        "|/",
        "* a",
    ]


def test_a_lane_is_joined_across_another() -> None:
    assert draw(("x", "a"), ("y", "b"), ("z", "a"), ("a", ""), ("b", "")) == [
        "* x",
        "| * y",
        "| | * z",
        "|_|/",
        "* | a",
        " /",
        "* b",
    ]


def test_three_parents() -> None:
    assert draw(("m", "abc"), ("a", ""), ("b", ""), ("c", "")) == [
        "* m",
        "|\\",
        "|\\ \\",
        "* | | a",
        " / /",
        "* | b",
        " /",
        "* c",
    ]


def test_lanes_to_the_right_make_room() -> None:
    assert draw(("m", "ab"), ("x", "c"), ("a", "de"))[2:] == ["| | * x", "* | | a", "|\\ \\ \\"]


def test_the_lines_of_a_commit_stand_beside_the_lanes() -> None:
    graph = Graph()
    assert list(graph.draw(b"b", [b"a"], ["b", "", "said"])) == ["* b", "|", "| said"]
    assert list(graph.draw(b"a", [], ["a", "said"])) == ["* a", "  said"]


@given(st.lists(st.sets(st.integers(1, 6), max_size=3), max_size=30))
def test_every_commit_has_its_mark_and_all_lanes_end(steps: list[set[int]]) -> None:
    count = len(steps)
    graph, marks = Graph(), 0
    for number, back in enumerate(steps):
        parents = sorted(number + one for one in back if number + one < count)
        rows = list(graph.draw(bytes([number]), [bytes([one]) for one in parents], ["x"]))
        marks += sum(row.count("*") for row in rows)
        assert all(set(row) <= set("*|/\\_ x") for row in rows)
    assert marks == count
    assert graph._lanes == []
