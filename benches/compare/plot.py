"""Draws the results as one SVG: the ratios of the closed loops, and how many answers of the open loops came in time.

Begin at `draw`. It takes what `table.medians` gives, and knows no file.
"""

import math
from html import escape

WIDTH = 960
MARGIN = 24
# Colours that people who see fewer of them can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9")
GREY = "#d0d0d0"
# What the dots of a row are: name, value, whether more is better.
DOTS = (
    ("throughput", "per s", True),
    ("p50", "p50 ms", False),
    ("p99", "p99 ms", False),
    ("server CPU", "CPU us", False),
)
ROW = 18
LABELS = 230
PANEL = 200
STYLE = """text { font: 12px system-ui, sans-serif; fill: #222 }
.title { font-weight: 600; font-size: 14px }
.small { font-size: 11px }"""


def draw(medians, own):
    """The whole picture."""
    shapes, height = [], MARGIN
    closed = medians.get("closed", {})
    for rival in rivals(closed, own):
        height = ratios(shapes, height, closed, own, rival)
    if "open" in medians:
        height = goodput(shapes, height, medians["open"])
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
    ground = f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", ground, *shapes, "</svg>\n"])


def rivals(by_what, own):
    return list(dict.fromkeys(server for by_server in by_what.values() for server in by_server if server != own))


def ratios(shapes, top, closed, own, rival):
    """A row of dots for each closed loop: how many times better than `rival`, on a logarithmic axis."""
    rows = [(" ".join(map(str, what)), advantages(by_server.get(own, {}), by_server.get(rival, {})))
            for what, by_server in closed.items()]
    found = [value for _, values in rows for value in values if value]
    if not found:
        return top
    low, high = (math.floor(math.log2(min([*found, 1])) - 0.1), math.ceil(math.log2(max([*found, 1])) + 0.1))
    left, right = MARGIN + LABELS, WIDTH - MARGIN

    def at(value):
        return left + (math.log2(value) - low) / (high - low) * (right - left)

    title(shapes, top, f"Closed loops: {own} against {rival}, times better (1 = the same)")
    key(shapes, top + 22, [name for name, _, _ in DOTS])
    begin, end = top + 56, top + 56 + ROW * len(rows)
    for power in range(low, high + 1):
        line(shapes, [(at(2**power), begin - 6), (at(2**power), end)], "#222" if power == 0 else GREY)
        text(shapes, at(2**power), begin - 10, f"{2**power:g}", anchor="middle", style="small")
    for row, (label, values) in enumerate(rows):
        y = begin + ROW * (row + 0.5)
        text(shapes, left - 8, y + 4, label, anchor="end")
        for value, colour in zip(values, COLOURS):
            if value:
                circle(shapes, at(value), y, colour)
    return end + 2 * MARGIN


def advantages(ours, theirs):
    """How many times better, for each of DOTS; None where something is unknown."""
    pairs = ((ours.get(name), theirs.get(name), more) for _, name, more in DOTS)
    return [(a / b if more else b / a) if a and b else None for a, b, more in pairs]


def goodput(shapes, top, opened):
    """A panel for each pattern of arrivals: answers in time by what was offered, a line for each server."""
    patterns = list(dict.fromkeys(pattern for _, pattern, _ in opened))
    servers = list(dict.fromkeys(server for by_server in opened.values() for server in by_server))
    points = {
        (pattern, server): [(values["offered/s"], values["in time/s"]) for (_, each, _), by_server in opened.items()
                            if each == pattern and (values := by_server.get(server))]
        for pattern in patterns for server in servers
    }
    most = nice(max((max(point) for line_ in points.values() for point in line_), default=1))
    title(shapes, top, "Open loops: answers in time per second, by requests offered per second")
    key(shapes, top + 22, servers)
    width = (WIDTH - 2 * MARGIN) / len(patterns)
    begin, end = top + 64, top + 64 + PANEL
    for number, pattern in enumerate(patterns):
        left, right = MARGIN + 32 + number * width, MARGIN + (number + 1) * width - 8

        def at(point, left=left, right=right):
            return left + point[0] / most * (right - left), end - point[1] / most * PANEL

        text(shapes, (left + right) / 2, begin - 10, pattern, anchor="middle")
        for step in range(5):
            value = most * step / 4
            line(shapes, [at((0, value)), at((most, value))], GREY)
            text(shapes, left - 4, at((0, value))[1] + 4, f"{value:g}", anchor="end", style="small")
            text(shapes, at((value, 0))[0], end + 14, f"{value:g}", anchor="middle", style="small")
        line(shapes, [at((0, 0)), at((most, most))], GREY, dashed=True)
        for server, colour in zip(servers, COLOURS):
            line(shapes, [at(point) for point in points[pattern, server]], colour, width=2)
            for point in points[pattern, server]:
                circle(shapes, *at(point), colour, radius=3)
    return end + 2 * MARGIN


def nice(value):
    """The next number that four equal steps reach without odd fractions."""
    unit = 10 ** math.floor(math.log10(value))
    return next(unit * step for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if unit * step >= value)


def title(shapes, y, words):
    text(shapes, MARGIN, y + 4, words, style="title")


def key(shapes, y, names):
    x = MARGIN
    for name, colour in zip(names, COLOURS):
        circle(shapes, x + 5, y, colour)
        text(shapes, x + 14, y + 4, name)
        x += 34 + 7 * len(name)


def text(shapes, x, y, words, anchor="start", style=""):
    shapes.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}">{escape(words)}</text>')


def line(shapes, points, colour, width=1, dashed=False):
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = ' stroke-dasharray="4 4"' if dashed else ""
    shapes.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dashes}/>')


def circle(shapes, x, y, colour, radius=5):
    shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}" fill-opacity="0.85"/>')
