"""Makes tables and plots of the figures of scripts/bench.

bench_report.py DIRECTORY: reads DIRECTORY/results.jsonl, prints all tables and writes them into DIRECTORY/tables.md, puts the chief figures
into DIRECTORY/README.md between two marks, and draws DIRECTORY/*.svg.
"""

import json
import math
import sys
from html import escape
from pathlib import Path

TARGETS = ["core", "ferrostored", "xenstored"]
COLOURS = {"core": "#888888", "ferrostored": "#c2410c", "xenstored": "#1d4ed8"}
# Where the figures stand in the README.
BEGIN, END = "<!-- figures: scripts/bench writes them -->", "<!-- end of figures -->"
# What is plotted over what, one panel each: title, workload, what the sizes are.
PANELS = [
    ("read", "nodes: read", "nodes"),
    ("write", "nodes: write", "nodes"),
    ("mkdir + rm", "nodes: mkdir+rm", "nodes"),
    ("transaction of 10 reads, 10 writes", "nodes: transaction 10+10", "nodes"),
    ("mkdir + rm of a child", "directory mkdir+rm child", "children"),
    ("one DIRECTORY_PART", "directory part", "children"),
    ("write", "write, unrelated watches", "unrelated watches"),
    ("read", "read, idle connections", "idle connections"),
    ("write that n clients watch", "fan-out", "watchers"),
]
# Workloads that only tables.md has.
SECONDARY = ("directory read", "directory write", "directory list", "watch+unwatch", "nodes: directory", "nodes: set_perms", "nodes: watch",
             "nodes: transaction start", "nodes: write beside")
# Growth with these is the work itself: a list has so many names, a change so many watchers.
PROPORTIONAL = {"directory list", "fan-out"}


def main():
    directory = Path(sys.argv[1])
    run, figures = load(directory / "results.jsonl")
    text = report(run, figures)
    print(text)
    (directory / "tables.md").write_text(f"# Every figure\n\n{text}\n")
    write_readme(directory / "README.md", summary(run, figures))
    (directory / "growth.svg").write_text(draw_growth(figures))
    if any(target == "xenstored" for target, *_ in figures):
        (directory / "ratios.svg").write_text(draw_ratios(figures))


def load(path):
    """The run's description, and figures by (target, workload, size, unit), in the order in which they were taken."""
    run, figures = {}, {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if "run" in entry:
            run = entry["run"]
        else:
            figures[entry["target"], entry["workload"], entry["size"], entry["unit"]] = entry
    return run, figures


def described(run):
    peer = f"C xenstored {run['xenstored']}" if run["xenstored"] else "without C xenstored"
    return f"Taken on {run['date']} from commit {run['commit']}: {run['rustc']}, {run['processor']}, {run['valgrind']}, {peer}."


def summary(run, figures):
    """The chief figures: what each operation costs, largest sizes included, and what a node takes."""
    chief = {key: entry for key, entry in figures.items() if not key[1].startswith(SECONDARY)}
    parts = [described(run), "Instructions per operation:", table_of_figures(chief, "instructions")]
    memory = table_of_memory(figures)
    if memory:
        parts += ["Bytes of memory per node:", memory]
    return "\n\n".join(parts)


def report(run, figures):
    parts = [
        described(run),
        "### Instructions per operation\n\n" + table_of_figures(figures, "instructions"),
        "### Nanoseconds of the server's processor per operation, kernel included\n\n" + table_of_figures(figures, "nanoseconds"),
        "### Growth from the smallest size to the largest\n\n" + table_of_growth(figures),
        "### Times that a transaction had to be repeated\n\n" + table_of_repeats(figures),
    ]
    memory = table_of_memory(figures)
    if memory:
        parts.append("### Bytes of memory per node\n\n" + memory)
    return "\n\n".join(parts)


def keys(figures, unit):
    """(workload, size) of all targets, in order: those of one workload together."""
    found = {}
    for _, workload, size, own in figures:
        if own == unit:
            found.setdefault(workload, set()).add(size)
    return [(workload, size) for workload, sizes in found.items() for size in sorted(sizes)]


def value(figures, target, workload, size, unit):
    entry = figures.get((target, workload, size, unit))
    return entry and entry["value"]


def table_of_figures(figures, unit):
    present = [target for target in TARGETS if any(key[0] == target and key[3] == unit for key in figures)]
    rows = []
    for workload, size in keys(figures, unit):
        values = {target: value(figures, target, workload, size, unit) for target in present}
        row = [workload, number(size) if size else ""] + [number(values[target]) for target in present]
        if "xenstored" in present:
            row.append(ratio(values["xenstored"], values["ferrostored"]))
        rows.append(row)
    heads = ["operation", "size"] + present + (["xenstored / ferrostored"] if "xenstored" in present else [])
    return table(heads, rows)


def table_of_growth(figures):
    rows = []
    for workload, ends in span(figures).items():
        row = [workload + (" (proportional)" if workload in PROPORTIONAL else "")]
        for target in TARGETS:
            sizes = ends.get(target)
            if sizes:
                small, large = sizes
                factor = ratio(
                    value(figures, target, workload, large, "instructions"), value(figures, target, workload, small, "instructions")
                )
                row.append(f"{factor} ({number(small)} → {number(large)})")
            else:
                row.append("")
        rows.append(row)
    return table(["operation"] + TARGETS, rows)


def span(figures):
    """For each workload with more than one size, each target's smallest and largest."""
    found = {}
    for target, workload, size, unit in figures:
        if unit == "instructions":
            found.setdefault(workload, {}).setdefault(target, []).append(size)
    return {
        workload: {target: (min(sizes), max(sizes)) for target, sizes in targets.items()}
        for workload, targets in found.items()
        if any(len(sizes) > 1 for sizes in targets.values())
    }


def table_of_repeats(figures):
    workloads = [workload for workload, _ in keys(figures, "instructions") if workload.startswith("transactions ")]
    rows = []
    for workload in workloads:
        entries = [figures.get((target, workload, 0, "instructions")) for target in TARGETS]
        rows.append([workload] + [f"{entry['repeated']:.1f}" if entry else "" for entry in entries])
    return table(["two transactions at once"] + TARGETS, rows)


def table_of_memory(figures):
    rows = []
    for (target, workload, size, unit), entry in figures.items():
        if unit in ("bytes", "blocks"):
            what = {"memory": "resident", "memory, heap": "asked of the heap", "memory, heap blocks": "blocks of the heap"}[workload]
            rows.append([target, what, number(size), f"{entry['value']:.1f}"])
    return table(["target", "what", "nodes", "per node"], rows) if rows else ""


def table(heads, rows):
    lines = [heads, ["---"] + ["--:"] * (len(heads) - 1)] + rows
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value):
    if value is None:
        return "–"
    return f"{round(value):,}".replace(",", " ")


def ratio(one, other):
    if not one or not other:
        return "–"
    quotient = one / other
    return f"{quotient:.2f}" if quotient < 10 else f"{quotient:.0f}"


def write_readme(path, text):
    """Puts the figures between the marks; a directory without a README gets one of figures alone."""
    old = path.read_text() if path.exists() else f"{BEGIN}\n{END}\n"
    head, rest = old.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    path.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}")


def draw_growth(figures):
    """A panel for each of PANELS: instructions over size, both logarithmic, a decade of instructions equally high in all."""
    width, height, columns = 330, 230, 3
    shown = [panel for panel in PANELS if any(key[1] == panel[1] for key in figures)]
    body = []
    for place, (title, workload, sizes) in enumerate(shown):
        x, y = place % columns * width, 40 + place // columns * height
        body.append(f'<g transform="translate({x},{y})">{panel(figures, title, workload, sizes, width, height)}</g>')
    rows = math.ceil(len(shown) / columns)
    legend = "".join(
        f'<circle cx="{20 + 130 * place}" cy="20" r="5" fill="{COLOURS[target]}"/>'
        f'<text x="{30 + 130 * place}" y="24">{legend_name(target)}</text>'
        for place, target in enumerate(TARGETS)
    ) + f'<text x="{20 + 130 * len(TARGETS)}" y="24" class="axis">instructions per operation</text>'
    return svg(width * columns, 40 + rows * height, legend + "".join(body))


def legend_name(target):
    return {"core": "store alone", "xenstored": "C xenstored"}.get(target, target)


def panel(figures, title, workload, sizes_name, width, height):
    points = {
        target: sorted((size, entry["value"]) for (own, name, size, unit), entry in figures.items()
                       if (own, name, unit) == (target, workload, "instructions"))
        for target in TARGETS
    }
    sizes = sorted({size for series in points.values() for size, _ in series})
    values = [value for series in points.values() for _, value in series]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 2)
    left, right, top, bottom = 52, width - 20, 28, height - 44

    def across(size):
        return left + 14 + (right - left - 28) * sizes.index(size) / max(1, len(sizes) - 1)

    def up(value):
        return bottom - (bottom - top) * (math.log10(value) - low) / (high - low)

    parts = [f'<text x="{left}" y="16" class="title">{escape(title)}</text>']
    for power in range(low, high + 1):
        y = up(10**power)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{short(10**power)}</text>')
    for size in sizes:
        parts.append(f'<text x="{across(size):.1f}" y="{bottom + 16}" text-anchor="middle">{short(size)}</text>')
    parts.append(f'<text x="{(left + right) / 2}" y="{bottom + 32}" text-anchor="middle" class="axis">{escape(sizes_name)}</text>')
    for target, series in points.items():
        line = " ".join(f"{across(size):.1f},{up(value):.1f}" for size, value in series)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[target]}" stroke-width="2"/>')
        for size, value in series:
            parts.append(
                f'<circle cx="{across(size):.1f}" cy="{up(value):.1f}" r="4" fill="{COLOURS[target]}">'
                f"<title>{target}: {number(value)} instructions at {number(size)} {escape(sizes_name)}</title></circle>"
            )
    return "".join(parts)


def draw_ratios(figures):
    """A row for each operation that both servers ran: how many times what ferrostored costs C xenstored costs."""
    rows = []
    for workload, size in keys(figures, "instructions"):
        pairs = []
        for unit in ("instructions", "nanoseconds"):
            ours = value(figures, "ferrostored", workload, size, unit)
            theirs = value(figures, "xenstored", workload, size, unit)
            pairs.append(theirs / ours if ours and theirs else None)
        if pairs[0]:
            rows.append((workload + (f", {short(size)}" if size else ""), pairs))
    known = [ratio for _, pairs in rows for ratio in pairs if ratio]
    low, high = math.floor(math.log10(min(known + [1]))), math.ceil(math.log10(max(known + [10])))
    left, right, top, step = 330, 920, 56, 20
    height = top + step * len(rows) + 20

    def across(ratio):
        return left + (right - left) * (math.log10(ratio) - low) / (high - low)

    parts = [
        '<text x="16" y="22" class="title">C xenstored / ferrostored: right of 1, C xenstored costs more</text>',
        '<circle cx="640" cy="17" r="5" fill="#c2410c"/><text x="650" y="21">instructions</text>',
        '<circle cx="750" cy="17" r="5" fill="white" stroke="#c2410c" stroke-width="2"/><text x="760" y="21">processor time</text>',
    ]
    for power in range(low, high + 1):
        x = across(10**power)
        kind = "one" if power == 0 else "grid"
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{height - 16}" class="{kind}"/>')
        parts.append(f'<text x="{x:.1f}" y="{top - 10}" text-anchor="middle">{10.0**power:g}</text>')
    for place, (name, (instructions, time)) in enumerate(rows):
        y = top + step * place + 10
        parts.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<line x1="{across(1):.1f}" x2="{across(instructions):.1f}" y1="{y}" y2="{y}" stroke="#c2410c" stroke-width="2"/>')
        if time:
            parts.append(f'<circle cx="{across(time):.1f}" cy="{y}" r="4" fill="white" stroke="#c2410c" stroke-width="2"/>')
        parts.append(f'<circle cx="{across(instructions):.1f}" cy="{y}" r="4" fill="#c2410c"/>')
    return svg(right + 30, height, "".join(parts))


def short(number):
    for limit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{letter}"
    return f"{number:g}"


def svg(width, height, body):
    style = (
        "text{font:12px sans-serif;fill:#333} .title{font-weight:bold;font-size:13px} .axis{fill:#666}"
        " .grid{stroke:#ddd} .one{stroke:#333}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="white"/>{body}</svg>\n'
    )


main()
