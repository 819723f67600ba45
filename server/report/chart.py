"""Geometry of the report's charts, for a template that draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

Point = tuple[float, float]
WIDTH, HEIGHT = 400.0, 250.0  # narrow, so that text is still read where it is scaled down to a telephone's screen
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 14.0, 12.0, 42.0
_LABEL = 13.0  # units between two lines of text


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        kind: its class in the style sheet.
        points: by rising x.
        band: x, low and high of an interval, by rising x.
    """

    kind: str
    points: Sequence[Point]
    dots: bool = False
    band: Sequence[tuple[float, float, float]] = ()


@dataclass
class Chart:
    """A chart in units of its view box: ticks are places with a label, paths are SVG path data by class."""

    title: str
    across: str
    width: float = WIDTH
    height: float = HEIGHT
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)
    paths: list[tuple[str, str]] = field(default_factory=list)
    dots: list[tuple[str, float, float]] = field(default_factory=list)
    bands: list[tuple[str, str]] = field(default_factory=list)
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    bottom: float = HEIGHT - _BOTTOM


def line_chart(
    title: str, across: str, lines: Sequence[Line], up: Callable[[float], str], *, from_zero: bool = False
) -> Chart | None:
    """Lay out lines over a horizontal axis of whole numbers; None without a finite point.

    Args:
        up: formats values of the vertical axis.
        from_zero: whether the vertical axis begins at 0.
    """
    lines = [_finite(line) for line in lines]
    points = [point for line in lines for point in line.points]
    if not points:
        return None
    heights = [y for _, y in points] + [end for line in lines for _, low, high in line.band for end in (low, high)]
    low, high = _range(heights, from_zero=from_zero)
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    last = last if last > first else first + 1
    chart = Chart(title, across)

    def place(x: float, y: float) -> Point:
        across_share, up_share = (x - first) / (last - first), (y - low) / (high - low)
        return (
            round(_LEFT + across_share * (WIDTH - _LEFT - _RIGHT), 1),
            round(chart.bottom - up_share * (chart.bottom - _TOP), 1),
        )

    chart.x_ticks = [(place(x, low)[0], f"{x:,.0f}") for x in ticks(first, last, 5, whole=True)]
    chart.y_ticks = [(place(first, y)[1], up(y)) for y in ticks(low, high, 5)]
    for line in lines:
        placed = [place(*point) for point in line.points]
        if line.band:
            top = [place(x, end) for x, _, end in line.band]
            under = [place(x, end) for x, end, _ in reversed(line.band)]
            chart.bands.append((line.kind, path([*top, *under]) + "Z"))
        if len(placed) > 1:
            chart.paths.append((line.kind, path(placed)))
        if line.dots:
            chart.dots += [(line.kind, *point) for point in placed]
    return chart


def _finite(line: Line) -> Line:
    """Return a line without its values that are no finite numbers."""
    points = [point for point in line.points if all(map(math.isfinite, point))]
    return replace(line, points=points, band=[part for part in line.band if all(map(math.isfinite, part))])


def _range(values: Sequence[float], *, from_zero: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    low = min(low, 0.0) if from_zero else low
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return (low if from_zero else low - room), high + room


def ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Return about `most` values between two others, at multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    step = max(1.0, round(step)) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def path(points: Sequence[Point]) -> str:
    """Return SVG path data through points."""
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


@dataclass(frozen=True)
class Slope:
    """One group's line in a slope chart; labels may be moved from their line's ends so that none overlap."""

    name: str
    before: float
    after: float
    y_before: float
    y_after: float
    label_before: float
    label_after: float

    @property
    def kind(self) -> str:
        """The class in the style sheet."""
        return "better" if self.after < self.before else "worse" if self.after > self.before else "same"


@dataclass(frozen=True)
class SlopeChart:
    """A slope chart: rates of groups before, left, and after, right."""

    title: str
    slopes: Sequence[Slope]
    height: float
    width: float = 430.0
    left: float = 176.0
    right: float = 254.0


def slope_chart(title: str, groups: Sequence[tuple[str, float, float]]) -> SlopeChart:
    """Lay out groups of name, rate before and rate after; all groups have labels, so the height grows with them."""
    height = max(200.0, 34 + (_LABEL + 2) * len(groups))
    rates = [rate for _, before, after in groups for rate in (before, after)] or [0.0]
    low, high = min(rates), max(rates)
    top, bottom = 28.0, height - 12.0

    def y(rate: float) -> float:
        return round(bottom - (rate - low) / ((high - low) or 1.0) * (bottom - top), 1)

    left = _apart([y(before) for _, before, _ in groups], top, bottom)
    right = _apart([y(after) for _, _, after in groups], top, bottom)
    slopes = [
        Slope(name, before, after, y(before), y(after), left[place], right[place])
        for place, (name, before, after) in enumerate(groups)
    ]
    return SlopeChart(title, slopes, height)


def _apart(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
    """Return places near the wanted ones, at least a line of text apart; in their order, from the top."""
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    found = list(wanted)
    least = top
    for place in order:
        found[place] = least = max(found[place], least)
        least += _LABEL
    most = bottom
    for place in reversed(order):
        found[place] = most = min(found[place], most)
        most -= _LABEL
    return [round(each, 1) for each in found]
