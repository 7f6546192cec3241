"""Documentation strings against the source files that hold them."""

import ast
import importlib.util
import inspect
import pathlib
import sys

import pytest

import gpt1_jax
from gpt1_jax.data.corpus import docstrings, sources
from gpt1_jax.data.corpus.held_out import HELD_OUT, held_out_rule
from gpt1_jax.errors import UserError

# A definition in every statement that can hold one.
STATEMENTS = """
if x:
    def f(): '''1'''
else:
    class A: '''2'''
try:
    def f(): '''3'''
except E:
    def f(): '''4'''
else:
    def f(): '''5'''
finally:
    def f(): '''6'''
for x in y:
    with x:
        async def f(): '''7'''
else:
    def f(): '''8'''
match x:
    case 1:
        def f(): '''9'''
while x:
    def f(): '''10'''
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed distribution `sample-dist` with the import name `samplepkg`."""
    files = {
        'samplepkg/__init__.py': '"""The package."""\n',
        'samplepkg/a.py': '''
def late():
    """Second in the file.

        indented
    """
    def inner():
        """Inner."""

class C:
    """Shared."""
''',
        'samplepkg/b.py': '"""Shared."""\n\ndef f():\n    r"""Only here \\d."""\nx = """no docstring"""\n',
        'samplepkg/statements.py': STATEMENTS,
        'samplepkg/broken.py': '"""Not Python 3."""\nprint "x"\n',
        'samplepkg/none.py': 'x = 1\n',
        'other/__init__.py': '"""Another package."""\n',
    }
    for name, source in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    info = tmp_path / 'sample_dist-1.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: sample-dist\nVersion: 1.0\n')
    (info / 'RECORD').write_text(''.join(f'{name},,\n' for name in files))
    monkeypatch.syspath_prepend(tmp_path)
    docstrings._docstrings_by_file.cache_clear()
    return tmp_path


def test_docstrings_by_hand(package):
    docs = docstrings.read_docstrings(('samplepkg',))
    assert [(d.package, d.path, d.docstrings) for d in docs] == [
        ('samplepkg', 'samplepkg/__init__.py', ['The package.']),
        ('samplepkg', 'samplepkg/a.py', ['Second in the file.\n\nindented', 'Inner.', 'Shared.']),
        ('samplepkg', 'samplepkg/b.py', ['Only here \\d.']),
        ('samplepkg', 'samplepkg/statements.py', ['1', '2', '3', '4', '5', '6', '7', '8', '9', '10']),
    ]
    assert sum(d.held_out for d in docs) == 1
    corpus = sources.open_corpus('docs:samplepkg')
    blocks = list(corpus.blocks())
    assert [b.text for b in blocks] == ['\n\n'.join(d.docstrings) for d in docs]
    is_held_out = held_out_rule(corpus.names, HELD_OUT)
    assert corpus.by_name and [is_held_out(b.name) for b in blocks] == [d.held_out for d in docs]
    assert 'samplepkg' not in sys.modules
    assert len(sources.open_corpus('docs:samplepkg,other').fingerprint) == 16
    with pytest.raises(UserError, match="docs:no_such_package: The package 'no_such_package' is not installed"):
        sources.open_corpus('docs:no_such_package')


def test_docstrings_of_a_large_package_use_processes():
    """More than four tasks: the pool; against inspect's own reading of one module."""
    docs = {d.path: d for d in docstrings.read_docstrings(('numpy',))}
    assert len(docs) > 150 and list(docs) == sorted(docs)
    texts = [text for d in docs.values() for text in d.docstrings]
    assert len(texts) == len(set(texts))
    path = 'numpy/_core/numeric.py'
    source = pathlib.Path(importlib.util.find_spec('numpy').origin).parents[1] / path
    functions = [n for n in ast.parse(source.read_text()).body if isinstance(n, ast.FunctionDef)]
    expected = [
        inspect.cleandoc(n.body[0].value.value).strip()
        for n in functions
        if isinstance(n.body[0], ast.Expr) and isinstance(n.body[0].value, ast.Constant)
    ]
    assert [text for text in docs[path].docstrings if text in set(expected)] == [
        text for text in expected if text in set(docs[path].docstrings)
    ]
    assert len(set(expected) & set(docs[path].docstrings)) > 10


def test_required_distributions():
    found = docstrings._required_distributions()
    assert {'jax', 'flax', 'numpy', 'jaxlib', 'tensorflow-datasets', 'ml-dtypes'} <= found
    assert 'no-such' not in found


def test_required_distributions_by_hand(tmp_path, monkeypatch):
    requires = {
        'first_dist': ['Second.Dist[extra]>=1 ; python_version > "3"', 'other-dist ; extra == "x"', 'missing-dist'],
        'second_dist': ['FIRST-DIST', 'third-dist ; python_version < "3"', 'not (a) requirement'],
        'third_dist': [],
        'other_dist': [],
    }
    for name, lines in requires.items():
        info = tmp_path / f'{name}-1.0.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(
            f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n' + ''.join(f'Requires-Dist: {x}\n' for x in lines)
        )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gpt1_jax, '__file__', str(tmp_path / 'gpt1_jax' / '__init__.py'))
    with pytest.raises(UserError, match=f'{tmp_path}/requirements.txt: .* missing'):
        docstrings.read_docstrings(())
    (tmp_path / 'requirements.txt').write_text(
        '# other-dist\n\nFirst.Dist==1.0  # why\nmissing-dist; sys_platform == "none"\n'
        '# Tools: not read.\nother-dist==1'
    )
    assert docstrings._required_distributions() == {'first-dist', 'second-dist', 'third-dist'}


def test_tools_are_not_read():
    """They came later than the quickstart's table, which rests on all docstrings that are read."""
    found = docstrings._required_distributions()
    assert {'numpy', 'pytest'} <= found and found.isdisjoint({'ruff', 'pytest-xdist', 'execnet'})
