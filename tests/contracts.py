"""A contract for import-linter: what importing some modules must not load.

Its own `forbidden` counts every import; this one leaves out those inside functions, which run when they are called, and
those for type checkers, which never run. So `--help` stays fast, and the reason why it does not is a chain of files.
"""

import ast
from pathlib import Path

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class UnloadedContract(Contract):
    """`source_modules` load none of `forbidden_modules`."""

    source_modules = fields.ListField(subfield=fields.ModuleField())
    forbidden_modules = fields.ListField(subfield=fields.ModuleField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        chains = []
        for module in graph.modules:
            loaded = loading_lines(module)
            for imported in graph.find_modules_directly_imported_by(module):
                details = graph.get_import_details(importer=module, imported=imported)
                if not any(detail["line_number"] in loaded for detail in details):
                    graph.remove_import(importer=module, imported=imported)
        for source in self.source_modules:
            for forbidden in self.forbidden_modules:
                if chain := graph.find_shortest_chain(importer=source.name, imported=forbidden.name):
                    chains.append(" -> ".join(chain))
        return ContractCheck(kept=not chains, metadata={"chains": chains})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for chain in check.metadata["chains"]:
            output.print_error(chain)


def loading_lines(module: str) -> set[int]:
    """The lines whose imports run when the module is imported; none for a module that is not ours."""
    path = Path(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        return set()
    found, waiting = set[int](), list[ast.AST](ast.parse(file.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.add(node.lineno)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return found
