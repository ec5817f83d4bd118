"""Ratios of the first server to each other one, as tables in Markdown. Begin at `tables`."""

import statistics
from collections import defaultdict

# A title, a remark, and what the first columns say.
TITLES = {
    "start": ("Start", "Live and ready are counted from the start of the process.", ("models",)),
    "closed": ("Closed loops", "Asked by perf_analyzer.", ("model", "via", "concurrency")),
    "memory": ("Memory", "After the closed loops.", ("model",)),
    "capacity": ("Capacity", "What a closed loop of our own load generator reaches.", ("model",)),
    "calm": (
        "Open loop without deadlines",
        "Each server is offered a part of its own capacity, or of the least of all; no answer is too late to come.",
        ("model", "arrivals", "part"),
    ),
    "open": (
        "Open loops",
        "Each server is offered a part of its own capacity; requests carry a deadline of 100 ms.",
        ("model", "arrivals", "part"),
    ),
}
# Of these more is better; of the others less is.
GAINS = ("per s", "in time/s", "in time, % of capacity")
# These say what was done; they are not compared.
GIVEN = ("offered/s",)


def medians(results):
    """By trial, by what was done, by server: the median of each value."""
    found = defaultdict(lambda: defaultdict(lambda: defaultdict(lambda: defaultdict(list))))
    for each in results:
        values = found[each.trial][each.what][each.server]
        for name, value in each.values.items():
            if value is not None:
                values[name].append(value)
    return {
        trial: {
            what: {server: {name: statistics.median(all_) for name, all_ in values.items()}
                   for server, values in by_server.items()}
            for what, by_server in by_what.items()
        }
        for trial, by_what in found.items()
    }


def tables(results, own):
    """All tables, one text."""
    found = medians(results)
    return "\n\n".join(table(trial, found[trial], own) for trial in TITLES if trial in found)


def table(trial, by_what, own):
    """One trial: a row for each thing that was done and each other server."""
    title, remark, given = TITLES[trial]
    names = list(dict.fromkeys(name for servers in by_what.values() for values in servers.values() for name in values))
    lines = [[*given, "against", *names, "loses"]]
    for what, by_server in by_what.items():
        for other in (server for server in by_server if server != own):
            ours, theirs = by_server.get(own, {}), by_server[other]
            cells = [cell(name, ours.get(name), theirs.get(name)) for name in names]
            lost = [name for name in names if loses(name, ours.get(name), theirs.get(name))]
            lines.append([*map(str, what), other, *cells, ", ".join(lost)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines]
    rows.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return f"### {title}\n\n{remark} Each cell: {own} / the other = ratio.\n\n" + "\n".join(rows)


def cell(name, ours, theirs):
    """Two figures and their ratio."""
    if ours is None or theirs is None:
        return "-" if ours is None and theirs is None else f"{number(ours)} / {number(theirs)}"
    if name in GIVEN or not theirs:
        return f"{number(ours)} / {number(theirs)}"
    return f"{number(ours)} / {number(theirs)} = {ours / theirs:.2f}"


def loses(name, ours, theirs):
    """Whether the first server is worse."""
    if ours is None or theirs is None or name in GIVEN:
        return False
    return ours < theirs if name in GAINS else ours > theirs


def number(value):
    """Three digits, or all before the point."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
