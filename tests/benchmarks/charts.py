"""Bar and scatter charts as SVG text, which follow the light or dark theme of the reader."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-size: 13px; font-weight: 600 }
.faint { fill: #6e7781 }
.own { fill: #0969da } .program { fill: #8c959f } .codec { fill: #b6bfc9 }
line { stroke: #d0d7de }
.paper { fill: #ffffff }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .faint { fill: #8d96a0 }
  .own { fill: #4493f8 } .program { fill: #7d8590 } .codec { fill: #3d444d }
  line { stroke: #3d444d }
  .paper { fill: #0d1117 }
}
"""

ROW, BAR = 19, 14
LABEL, VALUE = 62, 56
PANEL_WIDTH, PANEL_GAP = 290, 24
TITLE = 26
MARGIN = 12

PLOT_WIDTH, PLOT_HEIGHT = 640, 380
AXIS = 56


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar; `kind` is a class of the style: own, program or codec."""

    label: str
    value: float
    shown: str
    kind: str


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars under a title; the longest of them fills the width unless `full` says more."""

    title: str
    bars: Sequence[Bar]
    full: float = 0


@dataclass(frozen=True, slots=True)
class Point:
    """A labelled point at x > 0 (on a logarithmic axis) and y from 0 to 1."""

    label: str
    x: float
    y: float
    kind: str


def bar_chart(panels: Sequence[Panel], columns: int, description: str) -> str:
    """Panels of horizontal bars, row by row."""
    height = TITLE + ROW * max(len(panel.bars) for panel in panels) + PANEL_GAP
    parts = []
    for number, panel in enumerate(panels):
        x = MARGIN + number % columns * (PANEL_WIDTH + PANEL_GAP)
        y = MARGIN + number // columns * height
        parts.append(f'<g transform="translate({x} {y})">{_panel(panel)}</g>')
    columns = min(columns, len(panels))
    width = 2 * MARGIN + columns * (PANEL_WIDTH + PANEL_GAP) - PANEL_GAP
    rows = math.ceil(len(panels) / columns)
    return _document(width, 2 * MARGIN + rows * height - PANEL_GAP, parts, description)


def _panel(panel: Panel) -> str:
    longest = panel.full or max(bar.value for bar in panel.bars)
    space = PANEL_WIDTH - LABEL - VALUE
    parts = [f'<text class="title" y="13">{escape(panel.title)}</text>']
    for number, bar in enumerate(panel.bars):
        y = TITLE + number * ROW
        width = max(1.0, space * bar.value / longest)
        base = y + BAR - 3
        parts += (
            f'<text x="{LABEL - 6}" y="{base}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect class="{bar.kind}" x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR}"/>',
            f'<text class="faint" x="{LABEL + width + 5:.1f}" y="{base}">{escape(bar.shown)}</text>',
        )
    return "".join(parts)


def scatter_chart(points: Sequence[Point], x_title: str, y_title: str, description: str) -> str:
    """Labelled points; x is logarithmic, y goes from 0 to 1."""
    low = min(point.x for point in points) / 1.5
    high = max(point.x for point in points) * 2
    right, bottom = AXIS + PLOT_WIDTH, MARGIN + PLOT_HEIGHT

    def place(x: float) -> float:
        return AXIS + PLOT_WIDTH * math.log(x / low) / math.log(high / low)

    parts = [_rule(AXIS, bottom, right, bottom), _rule(AXIS, MARGIN, AXIS, bottom)]
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        y = bottom - PLOT_HEIGHT * 0.96 * tick
        parts.append(_rule(AXIS, y, right, y))
        parts.append(_text(AXIS - 6, y + 4, f"{tick:.1f}", "end"))
    for tick in _ticks(low, high):
        parts.append(_rule(place(tick), bottom, place(tick), bottom + 4))
        parts.append(_text(place(tick), bottom + 18, f"{tick:,}", "middle"))
    parts.append(_text(AXIS + PLOT_WIDTH / 2, bottom + 38, x_title, "middle"))
    middle = MARGIN + PLOT_HEIGHT / 2
    turned = f'transform="rotate(-90 14 {middle})"'
    parts.append(
        f'<text x="14" y="{middle}" text-anchor="middle" {turned}>{escape(y_title)}</text>'
    )
    for point in points:
        x, y = place(point.x), bottom - PLOT_HEIGHT * 0.96 * point.y
        parts.append(f'<circle class="{point.kind}" cx="{x:.1f}" cy="{y:.1f}" r="6"/>')
        parts.append(f'<text x="{x + 9:.1f}" y="{y + 4:.1f}">{escape(point.label)}</text>')
    return _document(right + MARGIN, bottom + 50, parts, description)


def _ticks(low: float, high: float) -> list[int]:
    tens = (10**power for power in range(7))
    return [step * ten for ten in tens for step in (1, 2, 5) if low <= step * ten <= high]


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text class="faint" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _document(width: float, height: float, parts: Sequence[str], description: str) -> str:
    lines = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img">\n'
        f"<title>{escape(description)}</title>\n<style>{STYLE}</style>\n"
        f'<rect class="paper" width="100%" height="100%"/>\n{lines}\n</svg>\n'
    )
