from hypothesis import example, given
from hypothesis import strategies as st

from mstore.cli import text


@given(st.text())
@example("\x1b[31mred\x1b[0m")
@example("a\u202eb\u2066c\x9b31m\udcff\r\n\t")
def test_visible_text_is_one_line_that_prints(value: str) -> None:
    shown = text.visible(value)
    assert shown.isprintable()
    assert shown.encode().decode() == shown


def test_visible_shows_what_is_hidden() -> None:
    assert text.visible("a\x1b[31mb\nc") == r"a\x1b[31mb\nc".replace(r"\n", r"\x0a")
    assert text.visible("\u202e") == r"\u202e"
    assert text.visible("caf\udce9") == r"caf\xe9"
    assert text.visible("naïve [red]日本[/red]") == "naïve [red]日本[/red]"


def test_size() -> None:
    assert [text.size(n) for n in (0, 999, 1000, 90_868_376, 999_949, 999_950)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "90.9 MB",
        "999.9 kB",
        "1.0 MB",
    ]
    assert text.size(10**19) == "10000.0 PB"
    assert text.size(-1500) == "-1.5 kB"


def test_percent_is_0_or_100_only_when_it_is() -> None:
    assert text.percent(0) == "0.0 %"
    assert text.percent(1e-9) == "<0.1 %"
    assert text.percent(0.817) == "81.7 %"
    assert text.percent(1 - 1e-9) == ">99.9 %"
    assert text.percent(1) == "100.0 %"
    assert text.share(1, 0) == "0.0 %"


def test_count() -> None:
    assert text.count(1, "file") == "1 file"
    assert text.count(2000, "file") == "2,000 files"
    assert text.count(0, "branch", "branches") == "0 branches"


@given(st.integers(-(1 << 70), 1 << 70), st.integers(-(1 << 40), 1 << 40))
def test_every_recorded_time_can_be_shown(microseconds: int, zone: int) -> None:
    assert text.date(microseconds, zone)
    assert text.moment(microseconds, zone).isoformat()
    assert text.age(microseconds)


def test_date_is_as_the_clock_of_the_author_showed_it() -> None:
    assert text.date(1_717_167_612_000_000, 120) == "2024-05-31 17:00:12 +0200"


def test_age() -> None:
    now = text.moment(0).timestamp()
    assert now == 0
    assert text.age(0).endswith("years ago")


def test_ages_by_the_largest_unit(monkeypatch) -> None:
    monkeypatch.setattr(text.time, "time", lambda: 1_000_000_000.0)
    ages = [text.age(int((1_000_000_000 - s) * 1e6)) for s in (-90, 5, 61, 7200, 86400, 800_000)]
    assert ages == [
        "in the future",
        "just now",
        "1 minute ago",
        "2 hours ago",
        "1 day ago",
        "1 week ago",
    ]


def test_metadata_is_in_order_and_unambiguous() -> None:
    values = {"z": 1, "a": 0.3, "note": "two words", "eq": "a=b", "no": None, "word": "ok", "e": ""}
    assert text.metadata(values) == 'a=0.3 e="" eq="a=b" no=null note="two words" word=ok z=1'
    assert text.metadata({"k\x1b": "v\x1b"}) == r"k\x1b=v\x1b"


def test_first_line() -> None:
    assert text.first_line("\n one\x1b\ntwo") == r"one\x1b"
    assert text.first_line("  ") == "(no message)"


def test_shape() -> None:
    assert text.shape((384, 1536)) == "[384,1536]"
    assert text.shape(()) == "[]"
