"""Text in files is UTF-8 whatever the locale: each place that reads or writes it says so."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("t2i_rl", "models", "rewards", "eval", "scripts")
TEXT_MODE = {"r", "w", "a", "x", "rt", "wt", "at", "xt"}


def unsaid(tree: ast.AST) -> Iterator[int]:
    """The lines of calls that leave the encoding of a text file to the locale."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and not any(keyword.arg == "encoding" for keyword in node.keywords):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            modes = {value.value for value in node.args if isinstance(value, ast.Constant)}
            if name in ("read_text", "write_text") or (name.endswith(("open", "File")) and modes & TEXT_MODE):
                yield node.lineno


def test_every_text_file_says_its_encoding() -> None:
    assert [*unsaid(ast.parse("a.read_text()\nopen(b, 'w')\nc.open('rb')\nopen(d, 'a', encoding='utf-8')"))] == [1, 2]
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert [f"{path}:{line}" for path in files for line in unsaid(ast.parse(path.read_text(encoding="utf-8")))] == []
