"""Pictures in SVG, drawn from the JSON document."""

import html
import math

INK, GRID, FLOOR = "#222222", "#dddddd", "#c0392b"
COLOURS = ["#2471a3", "#148f77", "#b9770e", "#7d3c98", "#566573"]
FONT = 'font-family="sans-serif" font-size="12"'
LEFT, RIGHT, TOP, ROW, BAR = 420, 70, 40, 16, 12
WIDTH = 960


def _text(x, y, words, anchor="start", fill=INK, more=""):
    words = html.escape(words)
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{fill}" {more}>{words}</text>'


def _line(x1, y1, x2, y2, colour=GRID, width=1):
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{colour}" stroke-width="{width}"/>'
    )


def _frame(width, height, parts):
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" {FONT}>'
        f'<rect width="{width}" height="{height}" fill="white"/>'
    )
    return head + "\n" + "\n".join(parts) + "\n</svg>\n"


def ratios(rows, peer, title):
    """Bars of marcot's ratios to one peer, on a logarithmic scale, with floors and spread."""
    groups = [(row, [r for r in row["ratios"] if r["to"] == peer]) for row in rows]
    groups = [(row, found) for row, found in groups if found]
    found = [ratio for _, group in groups for ratio in group]
    low = min([0.5, *(r["low"] for r in found)])
    high = max([2.0, *(r["high"] for r in found), *(r["floor"] or 1 for r in found)])
    span = WIDTH - LEFT - RIGHT

    def at(value):
        return LEFT + span * math.log(value / low) / math.log(high / low)

    height = TOP + sum(len(group) * ROW + ROW // 2 for _, group in groups) + 30
    parts = [_text(12, 20, title, more='font-weight="bold"')]
    for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20):
        if low <= tick <= high:
            parts.append(_line(at(tick), TOP - 6, at(tick), height - 24, INK if tick == 1 else GRID))
            parts.append(_text(at(tick), height - 10, f"{tick:g}", "middle"))
    y = TOP
    for row, group in groups:
        parts.append(_text(LEFT - 8, y + BAR - 1, row["title"], "end"))
        for number, ratio in enumerate(group):
            start, end = sorted((at(1), at(ratio["median"])))
            colour = COLOURS[number % len(COLOURS)]
            parts.append(
                f'<rect x="{start:.1f}" y="{y}" width="{max(end - start, 1):.1f}" '
                f'height="{BAR}" fill="{colour}"><title>{html.escape(ratio["of"])}: '
                f'{ratio["median"]:.2f}</title></rect>'
            )
            parts.append(_line(at(ratio["low"]), y + 6, at(ratio["high"]), y + 6, INK, 1.5))
            if ratio["floor"]:
                parts.append(_line(at(ratio["floor"]), y - 1, at(ratio["floor"]), y + 13, FLOOR, 3))
            parts.append(_text(WIDTH - RIGHT + 8, y + BAR - 1, f"{ratio['median']:.2f}"))
            y += ROW
        y += ROW // 2
    names = list(dict.fromkeys(ratio["of"] for ratio in found))
    for number, name in enumerate(names):
        parts.append(_text(LEFT + 110 * number, 20, name, fill=COLOURS[number % len(COLOURS)]))
    parts.append(_text(LEFT + 110 * len(names), 20, "floor", fill=FLOOR))
    return _frame(WIDTH, height, parts)


def shapes(found, title):
    """Lines of time over size, both logarithmic: flat is what they should be."""
    lines = [shape for shape in found if len(shape["points"]) > 1 and shape["unit"] == "ms"]
    if not lines:
        return None
    left, right, height, top = 60, 330, 360, 40
    values = [p["value"] for shape in lines for p in shape["points"]]
    low, high = min([0.1, *values]) / 1.5, max([20.0, *values]) * 1.5
    span, tall = WIDTH - left - right, height - top - 40

    def up(value):
        return top + tall * (1 - math.log(value / low) / math.log(high / low))

    parts = [_text(12, 20, title, more='font-weight="bold"')]
    for exponent in range(-3, 6):
        if low <= 10**exponent <= high:
            parts.append(_line(left, up(10**exponent), WIDTH - right, up(10**exponent)))
            parts.append(_text(left - 6, up(10**exponent) + 4, f"{10**exponent:g} ms", "end"))
    for number, shape in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        dash = "" if number < len(COLOURS) else 'stroke-dasharray="5 3"'
        count = len(shape["points"])
        spots = [
            (left + span * i / (count - 1), up(point["value"]))
            for i, point in enumerate(shape["points"])
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" {dash}/>'
        )
        ends = f"{shape['points'][0]['at']} to {shape['points'][-1]['at']}"
        label = f"{shape['title']} ({ends})"
        parts.append(_text(WIDTH - right + 10, top + 12 + 18 * number, label, fill=colour))
    height = max(height, top + 18 * len(lines) + 20)
    return _frame(WIDTH, height, parts)


def series(rows):
    """One panel for each row: requests of each second, of the last round of every system."""
    left, right, tall, gap, top = 70, 200, 120, 44, 20
    span = WIDTH - left - right
    parts = []
    names = list(dict.fromkeys(name for row in rows for name in row["runs"]))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    for number, row in enumerate(rows):
        y = top + number * (tall + gap)
        lines = {name: runs[-1]["series"] for name, runs in row["runs"].items()}
        lines = {name: line for name, line in lines.items() if len(line) > 1}
        if not lines:
            continue
        high = max(max(line) for line in lines.values())
        parts.append(_text(left, y - 4, row["title"], more='font-weight="bold"'))
        for part in (0, 0.5, 1):
            parts.append(_line(left, y + tall * (1 - part), left + span, y + tall * (1 - part)))
            parts.append(_text(left - 6, y + tall * (1 - part) + 4, f"{high * part:,.0f}", "end"))
        for place, (name, line) in enumerate(lines.items()):
            spots = [
                (left + span * i / (len(line) - 1), y + tall * (1 - value / high))
                for i, value in enumerate(line)
            ]
            path = " ".join(f"{x:.1f},{at:.1f}" for x, at in spots)
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="2"/>'
            )
            label = f"{name} (slowest {min(line):,})"
            parts.append(_text(left + span + 8, y + 12 + 16 * place, label, fill=colours[name]))
    return _frame(WIDTH, top + len(rows) * (tall + gap), parts)
