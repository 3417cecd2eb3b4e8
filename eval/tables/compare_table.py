"""A comparison as a table: for a terminal, Markdown, LaTeX, or CSV with one line per figure."""

import csv
import io
import re
from collections.abc import Sequence

from eval.benchmark import OVERALL
from eval.tables.compare import Comparison, Interval
from eval.tables.published import Published
from rewards.errors import printable

BOLD, PLAIN = "\033[1m", "\033[0m"  # to a terminal
Key = tuple[str, str]
Cells = list[list[str]]
INTERVAL = re.compile(r" \[([-+\d.]+), ([-+\d.]+)\]$")
ESCAPED = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "^": r"\^{}"}


def columns(comparison: Comparison) -> list[Key]:
    """The overall figures, then the categories of the first metric."""
    keys = list(next(iter(comparison.runs.values())))
    first = keys[0][0]
    return [key for key in keys if key[1] == OVERALL] + [key for key in keys if key[0] == first and key[1] != OVERALL]


def heading(key: Key) -> str:
    metric, place = key
    return metric if place == OVERALL else place


def cell(value: Interval, signed: bool = False) -> str:
    """`0.531 [0.498, 0.563]`; more digits would not be true."""
    sign, digits = "+" if signed else "", 3 if abs(value.value) < 10 else 2
    return f"{value.value:{sign}.{digits}f} [{value.low:{sign}.{digits}f}, {value.high:{sign}.{digits}f}]"


def body(comparison: Comparison, published: Sequence[Published] = ()) -> Cells:
    """The heading, the runs, their differences from the first, and what is published."""
    keys = columns(comparison)
    lines = [["run", *map(heading, keys)]]
    lines += [[name, *(cell(held[key]) for key in keys)] for name, held in comparison.runs.items()]
    lines += [[name, *(cell(held[key], signed=True) for key in keys)] for name, held in comparison.differences.items()]
    for row in published:
        lines.append([row.label, *(f"{row.figures[key]:g}" if key in row.figures else "" for key in keys)])
    return lines


def markdown(comparison: Comparison, published: Sequence[Published] = ()) -> str:
    head, *rest = body(comparison, published)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rest]
    return "".join(f"| {' | '.join(one.replace('|', chr(92) + '|') for one in line)} |\n" for line in lines)


def terminal(comparison: Comparison, published: Sequence[Published] = ()) -> str:
    """Figures as rows and runs as columns: a terminal is rarely as wide as a benchmark has categories.

    Differences whose interval holds no 0 are bold. What names hold that would steer the terminal is spelled out.
    """
    turned = [[printable(one) for one in column] for column in zip(*body(comparison, published), strict=True)]
    turned[0][0] = ""
    widths = [max(map(len, column)) for column in zip(*turned, strict=True)]
    lines = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in turned]
    for place, held in enumerate(comparison.differences.values(), 1 + len(comparison.runs)):
        for line, key in zip(lines[1:], columns(comparison), strict=True):
            if held[key].low > 0 or held[key].high < 0:
                line[place] = f"{BOLD}{line[place]}{PLAIN}"
    return "".join("  ".join(line).rstrip() + "\n" for line in lines)


def latex(comparison: Comparison, published: Sequence[Published] = ()) -> str:
    """A booktabs table, its intervals in small type."""
    head, *rest = body(comparison, published)
    runs = len(comparison.runs)
    groups = rest[:runs], rest[runs : runs + len(comparison.differences)], rest[runs + len(comparison.differences) :]
    text = f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}\n\\toprule\n{_latex_line(head)}"
    text += "".join("\\midrule\n" + "".join(map(_latex_line, group)) for group in groups if group)
    return text + "\\bottomrule\n\\end{tabular}\n"


def _latex_line(cells: Sequence[str]) -> str:
    escaped = ["".join(ESCAPED.get(sign, sign) for sign in one) for one in cells]
    small = [INTERVAL.sub(r" {\\scriptsize [\1, \2]}", one) for one in escaped]
    return " & ".join([small[0], *(one.replace("-", "$-$") for one in small[1:])]) + r" \\" + "\n"


def as_csv(comparison: Comparison, published: Sequence[Published] = ()) -> str:
    """`kind,run,metric,category,value,low,high`: every figure, with all digits."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["kind", "run", "metric", "category", "value", "low", "high"])
    for kind, held in (("value", comparison.runs), ("difference", comparison.differences)):
        for name, figures in held.items():
            for (metric, place), one in figures.items():
                writer.writerow([kind, name, metric, place, one.value, one.low, one.high])
    for row in published:
        for (metric, place), value in row.figures.items():
            writer.writerow(["published", row.label, metric, place, value, "", ""])
    return file.getvalue()


WRITERS = {".md": markdown, ".tex": latex, ".csv": as_csv}
