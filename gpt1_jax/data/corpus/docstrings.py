"""Documentation strings of installed Python packages: English text that every machine has."""

import ast
import contextlib
import dataclasses
import functools
import gc
import importlib.metadata
import inspect
import itertools
import pathlib
import warnings
from collections.abc import Iterator

import gpt1_jax
from gpt1_jax.data.corpus.held_out import HELD_OUT, held_out_rule
from gpt1_jax.errors import UserError
from gpt1_jax.files import import_package
from gpt1_jax.processes import process_pool


@dataclasses.dataclass(frozen=True)
class DocFile:
    """The documentation strings of one source file, in its order."""

    package: str  # import name
    path: str  # 'package/module.py'
    held_out: bool
    docstrings: list[str]


def read_docstrings(packages: tuple[str, ...] = (), held_out: float = HELD_OUT) -> list[DocFile]:
    """Reads the documentation strings of installed packages, without importing them.

    A string that occurs in several places is kept in the first one only, in the order of the files' names. The strings
    are cached: do not change them.

    Args:
      packages: import names; none: all packages that requirements.txt asks for, and what they require.
      held_out: fraction of the files that is marked as held out, as in `Corpus.blocks`.
    Raises:
      UserError: a package that is not installed, or no documentation at all.
    """
    files = _docstrings_by_file(packages)
    if not files:
        raise UserError(f'docs:{",".join(packages)}: There are no documentation strings. Name other packages.')
    is_held_out = held_out_rule(lambda: iter(files), held_out)
    return [
        DocFile(name.removesuffix('.py').split('/')[0], name, is_held_out(name), docs) for name, docs in files.items()
    ]


@functools.lru_cache(maxsize=4)
def _docstrings_by_file(packages: tuple[str, ...]) -> dict[str, list[str]]:
    files = _source_files(packages)
    names = sorted(files)
    tasks = [[str(files[name]) for name in names[i : i + 64]] for i in range(0, len(names), 64)]
    if len(tasks) <= 4:
        parsed = map(_parse_docstrings, tasks)
    else:
        with process_pool(0) as pool:
            parsed = list(pool.map(_parse_docstrings, tasks))
    seen, kept = set(), {}
    for name, docstrings in zip(names, itertools.chain.from_iterable(parsed), strict=True):
        new = [doc for doc in dict.fromkeys(docstrings) if doc not in seen]
        seen.update(new)
        if new:
            kept[name] = new
    return kept


def _source_files(packages: tuple[str, ...]) -> dict[str, pathlib.Path]:
    """The .py files of installed packages: 'package/module.py' -> path."""
    if packages:
        providers = importlib.metadata.packages_distributions()
        for package in packages:
            if package not in providers:
                raise UserError(
                    f'docs:{",".join(packages)}: The package {package!r} is not installed. Install it, or '
                    'correct its import name.'
                )
        distributions = {name for package in packages for name in providers[package]}
    else:
        distributions = _required_distributions()
    files = {}
    for distribution in distributions:
        for file in importlib.metadata.files(distribution) or ():
            top = file.parts[0].removesuffix('.py')
            if file.suffix == '.py' and '..' not in file.parts and (not packages or top in packages):
                files[file.as_posix()] = pathlib.Path(file.locate())
    return files


def _required_distributions() -> set[str]:
    """The installed distributions that requirements.txt names, and those they require in turn."""
    path = pathlib.Path(gpt1_jax.__file__).parents[1] / 'requirements.txt'
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        raise UserError(
            f'{path}: The source docs: reads this file, and it is missing. Name packages instead, for '
            'example docs:numpy,scipy.'
        ) from error
    requirements, utils = (
        import_package(f'packaging.{name}', 'the source docs: cannot be read') for name in ('requirements', 'utils')
    )
    # Without the tools: each new one would change the corpus.
    found, queue = set(), [line.partition('#')[0] for line in text.partition('# Tools')[0].splitlines()]
    while queue:
        # Invalid: an empty line, or the requirement of a package that is older than the rules.
        with contextlib.suppress(requirements.InvalidRequirement, importlib.metadata.PackageNotFoundError):
            requirement = requirements.Requirement(queue.pop())
            name = utils.canonicalize_name(requirement.name)
            # Markers of a platform do not matter: only what is installed is read.
            if name not in found and 'extra ==' not in str(requirement.marker):
                queue += importlib.metadata.requires(name) or ()
                found.add(name)
    return found


def _parse_docstrings(paths: list[str]) -> list[list[str]]:
    enabled = gc.isenabled()
    gc.disable()  # trees have no cycles, and the collector would search each many times
    try:
        return [_docstrings(pathlib.Path(path)) for path in paths]
    finally:
        if enabled:
            gc.enable()


def _docstrings(path: pathlib.Path) -> list[str]:
    try:
        source = path.read_bytes()
        if b'"""' not in source and b"'''" not in source:
            return []  # parsing is what takes the time
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []  # gone, a template, or a test of broken source
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in _statements(tree) if isinstance(node, documented) and ast.get_docstring(node)]
    nodes.sort(key=lambda node: node.body[0].lineno)
    docstrings = (inspect.cleandoc(ast.get_docstring(node, clean=False)).strip() for node in nodes)
    return list(filter(None, docstrings))


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """A tree and the statements in it; `ast.walk` goes through every expression too, which takes as long as parsing."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for field in ('body', 'handlers', 'orelse', 'finalbody', 'cases'):
            waiting += getattr(node, field, ())
