"""Compiles a module of the program without what it does not do when it runs.

Docstrings, annotations and `if TYPE_CHECKING:` are for readers and type checkers; they are a third of the byte code,
and every start would read it, make functions with it and keep it. A class' annotations keep their names, which are
a Record's fields.
"""

from __future__ import annotations
import __future__

import ast
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import CodeType


class _Slimmer(ast.NodeTransformer):
    """Takes annotations out of functions and modules, and what type checkers alone read out of all."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        """Keep what runs."""
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return [statement for each in node.orelse for statement in _listed(self.visit(each))]
        return self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        """Importing __future__ imports a module that has nothing to say at run time."""
        return None if node.module == "__future__" else node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Neither arguments nor the result have types."""
        self.generic_visit(node)
        node.returns = None
        arguments = node.args
        for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
            if each is not None:
                each.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        """A plain assignment, or nothing."""
        if node.value is None:
            return None
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Keep the names of the fields."""
        body: list[ast.stmt] = []
        for each in node.body:
            if isinstance(each, ast.AnnAssign):
                each.annotation = ast.copy_location(ast.Name("_", ast.Load()), each)
                body.append(each)
            else:
                body.extend(_listed(self.visit(each)))
        node.body = body
        return node


def _listed(visited: ast.AST | list[ast.stmt] | None) -> list[ast.stmt]:
    """What a visit gives, as statements."""
    if visited is None:
        return []
    return visited if isinstance(visited, list) else [visited]  # type: ignore[list-item]


def compiled(source: bytes, path: str) -> CodeType:
    """The code of a module without the annotations, which are not read at run time."""
    tree = ast.fix_missing_locations(_Slimmer().visit(ast.parse(source)))
    # Annotations of classes stay text.
    flags = __future__.annotations.compiler_flag
    code: CodeType = compile(tree, path, "exec", flags, dont_inherit=True, optimize=2)
    return code


def without_future(source: bytes, path: str, level: int) -> CodeType:
    """The code of a module, optimized to a level, that does not import __future__: its annotations stay text anyway."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not (isinstance(node, ast.ImportFrom) and node.module == "__future__")]
    flags = __future__.annotations.compiler_flag
    code: CodeType = compile(tree, path, "exec", flags, dont_inherit=True, optimize=level)
    return code


def uncommented(source: str) -> str:
    """A launcher without its docstring and comments: Python compiles it at each start."""
    tree = ast.parse(source)
    del tree.body[0]
    return ast.unparse(tree) + "\n"
