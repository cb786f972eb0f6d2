"""Executed inside a container: every import that the package makes anywhere, also inside functions, succeeds.

Packages that are not installed (extras) are passed over; ``pip check`` has looked at the required ones.
"""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import bids_petsynth


def imports(tree: ast.AST) -> set[tuple[str, str]]:
    """Module and name (empty for ``import module``) of each absolute import."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {(node.module, alias.name) for alias in node.names}
    return found


def main() -> int:
    package = Path(bids_petsynth.__file__).parent
    every = set().union(*(imports(ast.parse(path.read_text("utf-8"))) for path in package.rglob("*.py")))
    failed, tried = [], 0
    for module, name in sorted(every):
        if find_spec(module.partition(".")[0]) is None:
            continue
        tried += 1
        try:
            loaded = import_module(module)
            if name and name != "*" and not hasattr(loaded, name):
                import_module(f"{module}.{name}")
        except Exception as error:
            failed.append(f"{module} {name}: {type(error).__name__}: {error}")
    print(f"{tried} imports tried", *failed, sep="\n")
    return bool(failed) or tried < 100


if __name__ == "__main__":
    sys.exit(main())
