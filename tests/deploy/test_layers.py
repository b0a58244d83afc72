"""What import-linter does not see: imports for the type checker alone, and circles of modules within a package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
OURS: Final = ("apps", "cloud", "tunnel")
MODULES: Final = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in OURS
    for path in (ROOT / package).rglob("*.py")
}


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules of ours that a tree imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                yield name if name in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_nothing_of_ours_is_imported_for_the_type_checker_alone() -> None:
    """What a child needs of its parent is a narrow Protocol of its own (docs/architecture.md)."""
    hidden = {
        f"{module} -> {name}"
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for name in imported(ast.Module(body=node.body, type_ignores=[]))
        if name.partition(".")[0] in OURS
    }
    assert not hidden


def test_no_module_of_the_tunnel_leads_back_to_itself() -> None:
    edges = {
        module: {name for name in imported(ast.parse(path.read_text())) if name in MODULES and name != module}
        for module, path in MODULES.items()
        if module.startswith("tunnel.") and path.name != "__init__.py"
    }
    left = dict(edges)
    while gone := {module for module, names in left.items() if not names & left.keys()}:
        left = {module: names for module, names in left.items() if module not in gone}
    assert not left, f"in or behind a circle: {sorted(left)}"
