"""Draws a dashboard as a page: its panels where they stand on Grafana's grid, with what their queries found.

Not Grafana, and no more of it than a picture needs: lines, figures, bars and tables. Pure: JSON and numbers in, HTML out.
"""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from tests.support.dashboards import Range

WIDTH, ROW, GAP = 1240, 30, 8   # pixels: the page, one of the grid's rows, between panels
COLUMNS = 24
HEADING = 46
PALETTE = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#705da0", "#37872d", "#e0b400")
NAMED = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c"}
TEXT = NAMED["green"]
STYLE = f"""
* {{ box-sizing: border-box }}
body {{ margin: 0; width: {WIDTH}px; background: #111217; color: #ccccdc; font: 12px 'DejaVu Sans', sans-serif; position: relative }}
h1 {{ position: absolute; left: 12px; top: 13px; margin: 0; font-size: 16px; font-weight: normal }}
section {{ position: absolute; background: #181b1f; border: 1px solid #25282e; border-radius: 2px; overflow: hidden }}
section > h2 {{ margin: 0; padding: 7px 9px; font-size: 12.5px; font-weight: bold; height: 28px; white-space: nowrap }}
.row {{ position: absolute; padding: 6px 4px; font-size: 14px }}
.figure {{ text-align: center; font-size: 32px; padding-top: 22px }}
svg {{ display: block }} svg text {{ fill: #9fa7b3; font-size: 10.5px }}
.legend {{ padding: 0 10px; font-size: 10.5px; line-height: 16px; color: #9fa7b3; columns: 2; column-gap: 16px }}
.legend div {{ white-space: nowrap; overflow: hidden; text-overflow: ellipsis }}
.legend i {{ display: inline-block; width: 12px; height: 3px; vertical-align: middle; margin-right: 6px }}
.bar {{ margin: 0 10px; display: grid; grid-template-columns: 190px 1fr 76px; align-items: center; column-gap: 8px }}
.bar span {{ white-space: nowrap; overflow: hidden; text-overflow: ellipsis }} .bar b {{ text-align: right; font-weight: normal }}
.bar u {{ display: block; background: #22252b; height: 70% }} .bar i {{ display: block; height: 100% }}
table {{ border-collapse: collapse; width: 100%; font-size: 11.5px }} td, th {{ padding: 5px 9px; text-align: left; border-bottom: 1px solid #25282e; white-space: nowrap }}
th {{ color: #6e9fff; font-weight: normal }} .number {{ text-align: right }}
"""


def page(dashboard: dict[str, Any], find: Callable[[dict[str, Any]], list[list[Any]]], shown: Range) -> tuple[str, int]:
    """Return a dashboard's HTML and its height in pixels; `find` answers a panel's queries."""
    parts, bottom = [f"<h1>{escape(dashboard['title'])}</h1>"], 0
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            parts.append(f"<div class=row style='{_box(panel['gridPos'])}'>⌄ {escape(panel['title'])}</div>")
        for shown_panel in panel.get("panels", []) if panel["type"] == "row" else [panel]:
            place = shown_panel["gridPos"]
            inside = KINDS[shown_panel["type"]](shown_panel, find(shown_panel), shown)
            parts.append(f"<section style='{_box(place)}'><h2>{escape(shown_panel['title'])}</h2>{inside}</section>")
            bottom = max(bottom, place["y"] + place["h"])
    height = HEADING + bottom * (ROW + GAP) + GAP
    return f"<!doctype html><meta charset=utf-8><style>{STYLE}</style><body style='height:{height}px'>{''.join(parts)}", height


def _box(place: dict[str, int]) -> str:
    column = (WIDTH - GAP) / COLUMNS
    left, top = GAP + place["x"] * column, HEADING + place["y"] * (ROW + GAP)
    return f"left:{left:.0f}px;top:{top}px;width:{place['w'] * column - GAP:.0f}px;height:{place['h'] * (ROW + GAP) - GAP}px"


# ---------------------------------------------------------------- kinds of panels


def _figure(panel: dict[str, Any], found: list[list[Any]], _: Range) -> str:
    value = float(found[0][0]["value"][1]) if found[0] else math.nan
    return f"<div class=figure style='color:{_colour(panel, value)}'>{said(value, _unit(panel))}</div>"


def _bars(panel: dict[str, Any], found: list[list[Any]], _: Range) -> str:
    bars = []
    for target, answer in zip(panel["targets"], found, strict=True):
        for one in answer:
            if "value" in one:
                bars.append((_legend(target, one["metric"]), float(one["value"][1])))
            else:
                name, value = one.values()
                bars.append((str(name), float(value)))
    most = panel["fieldConfig"]["defaults"].get("max") or max((v for _, v in bars), default=1) or 1
    height = min(34.0, 240 / max(1, len(bars)))
    return "".join(
        f"<div class=bar style='height:{height:.0f}px'><span>{escape(name)}</span><u><i style='width:{100 * value / most:.1f}%;"
        f"background:{_colour(panel, value)}'></i></u><b style='color:{_colour(panel, value)}'>{said(value, _unit(panel))}</b></div>"
        for name, value in bars
    )


def _table(panel: dict[str, Any], found: list[list[Any]], _: Range) -> str:
    [organised] = [t["options"]["renameByName"] for t in panel["transformations"] if t["id"] == "organize"]
    units = {o["matcher"]["options"]: o["properties"][0]["value"] for o in panel["fieldConfig"]["overrides"]}
    order = {f: i for t in panel["transformations"] for f, i in t["options"]["indexByName"].items()}
    organised = {field: organised[field] for field in sorted(organised, key=lambda f: order[f])}
    rows = [one.get("metric", one) for one in found[0]]
    numeric = [heading for heading, unit in units.items() if unit != "string"]
    head = "".join(f"<th class={'number' if h in numeric else ''}>{escape(h)}</th>" for h in organised.values())
    body = "".join(
        "<tr>" + "".join(
            f"<td class=number>{said(float(row[f]), units[h])}</td>" if h in numeric else f"<td>{escape(str(row[f]))}</td>"
            for f, h in organised.items()
        ) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _lines(panel: dict[str, Any], found: list[list[Any]], shown: Range) -> str:
    series = _series(panel, found)
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    rows = min(4, math.ceil(len(series) / 2))
    width = panel["gridPos"]["w"] * (WIDTH - GAP) / COLUMNS - GAP - 2
    height = panel["gridPos"]["h"] * (ROW + GAP) - GAP - 36 - 16 * rows
    unit = _unit(panel)
    drawn, top = _stack(series) if stacked else (series, max((v for _, s in series for _, v in s), default=1.0))
    ticks = _ticks(top if top > 0 else 1.0, panel["fieldConfig"]["defaults"].get("max"))
    left, right, bottom = 62.0, 12.0, 20.0

    def x(at: float) -> float:
        return left + (at - shown.since) / (shown.until - shown.since) * (width - left - right)

    def y(value: float) -> float:
        return 6 + (1 - value / ticks[-1]) * (height - bottom - 6)

    clip = f"clip{panel['gridPos']['x']}-{panel['gridPos']['y']}"
    svg = [f"<svg width={width:.0f} height={height}><clipPath id={clip}><path d='M{left} 0H{width - right}V{height}H{left}Z'/></clipPath>"]
    for tick in ticks:
        svg.append(f"<path d='M{left} {y(tick):.1f}H{width - right:.0f}' stroke='#25282e'/>"
                   f"<text x={left - 6} y={y(tick) + 4:.1f} text-anchor=end>{said(tick, unit)}</text>")
    minutes = range(math.ceil(shown.since / 60), int(shown.until // 60) + 1, max(1, round((shown.until - shown.since) / 60 / 6)))
    for minute in minutes:
        svg.append(f"<text x={x(minute * 60):.0f} y={height - 4} text-anchor=middle>{minute % 1440 // 60:02}:{minute % 60:02}</text>")
    svg.append(f"<g clip-path='url(#{clip})'>")
    for number, (_, points) in reversed(list(enumerate(drawn))):
        colour = PALETTE[number % len(PALETTE)]
        for run in [points] if stacked else _runs(points, 3 * shown.step_s):
            path = "L".join(f"{x(at):.1f} {y(max(0.0, value)):.1f}" for at, value in run)
            below = drawn[number - 1][1] if stacked and number else [(run[0][0], 0.0), (run[-1][0], 0.0)]
            floor = "".join(f"L{x(at):.1f} {y(value):.1f}" for at, value in reversed(below))
            svg.append(f"<path d='M{path}{floor}Z' fill='{colour}' fill-opacity={'.55' if stacked else '.1'} />"
                       f"<path d='M{path}' fill=none stroke='{colour}' stroke-width=1.3 />")
    legend = "".join(
        f"<div><i style='background:{PALETTE[n % len(PALETTE)]}'></i>{escape(name)} &ensp;"
        f"last {said(points[-1][1], unit)} &ensp;max {said(max(v for _, v in points), unit)}</div>"
        for n, (name, points) in enumerate(series[:2 * rows])
    )
    return f"{''.join(svg)}</g></svg><div class=legend>{legend}</div>"


KINDS = {"stat": _figure, "bargauge": _bars, "table": _table, "timeseries": _lines}

# ---------------------------------------------------------------- parts

Points = list[tuple[float, float]]


def _series(panel: dict[str, Any], found: list[list[Any]]) -> list[tuple[str, Points]]:
    series: list[tuple[str, Points]] = []
    for target, answer in zip(panel["targets"], found, strict=True):
        if "rawSql" in target:
            names = dict.fromkeys(row["metric"] for row in answer)
            series += [(n, [(r["time"].timestamp(), float(r["value"])) for r in answer if r["metric"] == n]) for n in names]
            continue
        for one in answer:
            points = [(float(at), float(value)) for at, value in one["values"] if value != "NaN"]
            if points:
                series.append((_legend(target, one["metric"]), points))
    return series


def _stack(series: list[tuple[str, Points]]) -> tuple[list[tuple[str, Points]], float]:
    """Return the series each on top of those before, and the highest point."""
    times = sorted({at for _, points in series for at, _ in points})
    floor = dict.fromkeys(times, 0.0)
    stacked = []
    for name, points in series:
        for at, value in points:
            floor[at] += value
        stacked.append((name, [(at, floor[at]) for at in times]))
    return stacked, max(floor.values(), default=1.0)


def _runs(points: Points, gap_s: float) -> list[Points]:
    """Return the points in pieces between which there is nothing."""
    runs: list[Points] = []
    for point in points:
        if runs and point[0] - runs[-1][-1][0] <= gap_s:
            runs[-1].append(point)
        else:
            runs.append([point])
    return runs


def _ticks(top: float, most: float | None) -> Sequence[float]:
    top = min(top, most) if most else top
    step = 10 ** math.floor(math.log10(top))
    step = next(s for s in (step / 5, step / 2, step, step * 2) if top / s <= 5)
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


def _legend(target: dict[str, Any], labels: dict[str, str]) -> str:
    text = str(target.get("legendFormat") or "")
    for name, value in labels.items():
        text = text.replace("{{" + name + "}}", value)
    return text or ", ".join(labels.values()) or "value"


def _unit(panel: dict[str, Any]) -> str:
    return str(panel["fieldConfig"]["defaults"].get("unit", "short"))


def _colour(panel: dict[str, Any], value: float) -> str:
    colour = TEXT
    for step in panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", []):
        if step["value"] is None or value >= step["value"]:
            colour = NAMED.get(step["color"], step["color"])
    return colour


def said(value: float, unit: str) -> str:
    """Return a number in a panel's unit, as short as people say it."""
    if math.isnan(value):
        return "–"
    if unit == "percentunit":
        return f"{_number(value * 100)} %"
    if unit == "s":
        return f"{_number(value * 1000)} ms" if 0 < abs(value) < 1 else f"{_number(value)} s"
    if unit == "currencyUSD":
        return f"${_number(value)}"
    words = {"reqps": " req/s", "bytes": "B"}.get(unit, "")
    for size, letter in ((1e9, "G" if unit == "bytes" else "B"), (1e6, "M"), (1e3, "k" if unit == "bytes" else "K")):
        if abs(value) >= size:
            return f"{_number(value / size)} {letter}{words}"
    return f"{_number(value)}{' ' if unit == 'bytes' else ''}{words}"


def _number(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"
