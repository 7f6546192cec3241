"""The shape of the package: which way imports run, where a library is known, sizes, types, and a test file for each
module."""

import ast
import graphlib
import tomllib

import pytest

from helpers import ROOT

# From the top; a module imports from its own level and from those below. All else in gpt1_jax/ is the ground.
LEVELS = [{'main'}, {'tasks'}, {'report', 'evaluation', 'meter'}, {'training', 'saved_models'}, {'data', 'model'}]
LIBRARIES = {  # library: the modules that may import it, by the beginning of their names
    'tensorflow': ('data.', 'files'),
    'tensorflow_datasets': ('data.',),
    'orbax': ('training.checkpoint',),
    'apache_beam': ('data.corpus.beam',),
}
TESTED_IN = {  # where the file is not tests/test_NAME.py
    'errors': 'test_main',  # one class, and what the program makes of it
    'remote': 'test_bucket',
    'tasks.pretrain': 'test_main',  # the whole program, as a user starts it
    'tasks.finetune': 'test_main',
    'tasks.evaluate': 'test_main',
    'tasks.paper': 'test_paper_task',  # test_paper is that of evaluation.paper
    'model.triton_calls': 'test_attention_triton',
    'model.sizes': 'test_config',  # a table that configs read
    'data.corpus.tfds_text': 'test_sources',
    'data.corpus.units': 'test_beam',
    'data.labelled.origins': 'test_tfds',
    'training.checkpoint_folder': 'test_checkpoint',
    'meter.hlo': 'test_hlo_costs',
    'meter.trace': 'test_hlo_costs',
    **dict.fromkeys(
        (f'meter.{name}' for name in 'ceilings generation memory search step table timing training work'.split()),
        'test_meter',
    ),
}
MODULES = {
    '.'.join(path.relative_to(ROOT / 'gpt1_jax').with_suffix('').parts).removesuffix('__init__').rstrip('.'): path
    for path in (ROOT / 'gpt1_jax').rglob('*.py')
}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def imported(node):
    """Full names of what an import statement, or a call of `import_package` or `import_module`, imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert not node.level, 'imports are absolute'
        return [f'{node.module}.{alias.name}' for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).split('.')[-1] in ('import_package', 'import_module'):
        return [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
    return []


def imports_of(tree):
    return [name for node in ast.walk(tree) for name in imported(node)]


def own_modules(tree):
    """Modules of gpt1_jax that `tree` imports, without the package's name."""
    for name in imports_of(tree):
        if name.partition('.')[0] == 'gpt1_jax':
            name = name.removeprefix('gpt1_jax').lstrip('.')
            yield name if name in MODULES else name.rpartition('.')[0]


def level(module):
    room = module.partition('.')[0]
    return next((i for i, rooms in enumerate(LEVELS) if room in rooms), len(LEVELS))


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_imports_run_one_way():
    wrong = [
        f'{module} -> {other}'
        for module, tree in TREES.items()
        for other in own_modules(tree)
        if level(other) < level(module)
    ]
    assert not wrong


def test_no_circles():
    graphlib.TopologicalSorter({module: set(own_modules(tree)) for module, tree in TREES.items()}).prepare()


@pytest.mark.parametrize('library', LIBRARIES)
def test_only_some_modules_know_a_library(library):
    users = [
        module for module, tree in TREES.items() if any(name.partition('.')[0] == library for name in imports_of(tree))
    ]
    assert users and [user for user in users if not user.startswith(LIBRARIES[library])] == []


def test_only_partitioning_knows_the_axes_of_the_mesh():
    """Their names as strings; 'data' is also a key of the config."""
    users = {
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in ('fsdp', 'tensor')
    }
    assert users == {'training.partitioning'}


def test_no_import_hides_in_a_function():
    """Main alone imports a task when it is asked for."""
    hidden = [
        (module, name)
        for module, tree in TREES.items()
        if module != 'main'
        for function in functions(tree)
        for name in imports_of(function)
        if name.startswith('gpt1_jax')
    ]
    assert not hidden


def test_files_are_short():
    lengths = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert {module: lines for module, lines in lengths.items() if lines > 350} == {}


def is_kernel(function):
    """Whether Triton compiles it; a type would mean something to Triton."""
    return 'jit' in [ast.unparse(decorator) for decorator in getattr(function, 'decorator_list', ())]


def test_functions_have_few_parameters():
    parameters = {}
    for module, tree in TREES.items():
        for function in functions(tree):
            if is_kernel(function):  # its arrays are arguments of their own
                continue
            names = [arg.arg for arg in ast.walk(function.args) if isinstance(arg, ast.arg)]
            parameters[f'{module}.{function.name}'] = len([name for name in names if name not in ('self', 'cls')])
    assert {function: n for function, n in parameters.items() if n > 8} == {}


def test_public_functions_have_types():
    missing = []
    for module, tree in TREES.items():
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != '_']
        for function in (node for body in (tree, *classes) for node in body.body if isinstance(node, ast.FunctionDef)):
            args = function.args
            args = [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))]
            types = [function.returns, *(arg.annotation for arg in args if arg.arg not in ('self', 'cls'))]
            if function.name[0] != '_' and None in types and not is_kernel(function):
                missing.append(f'{module}.{function.name}')
    assert not missing


def test_no_test_file_imports_another():
    files = [*(ROOT / 'tests').glob('*.py')]
    names = {path.name: imports_of(ast.parse(path.read_text())) for path in files}
    assert {file: name for file, of in names.items() for name in of if name.startswith('test_')} == {}


def test_every_module_has_its_test_file():
    missing = {}
    for module, path in MODULES.items():
        file = TESTED_IN.get(module, f'test_{path.stem}')
        if path.stem != '__init__' and not (ROOT / 'tests' / f'{file}.py').exists():
            missing[module] = file
    assert missing == {}


def test_the_versions_of_pyproject_are_those_of_requirements():
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    extras = project['optional-dependencies']
    lines = [line.partition('#')[0].strip() for line in (ROOT / 'requirements.txt').read_text().splitlines()]
    assert sorted(filter(None, lines)) == sorted(project['dependencies'] + extras['release'] + extras['test'])
    [jax] = [line for line in lines if line.startswith('jax==')]
    assert {extra: extras[extra] for extra in ('tpu', 'cuda')} == {
        'tpu': [jax.replace('jax', 'jax[tpu]')],
        'cuda': [jax.replace('jax', 'jax[cuda12]')],
    }
    [hook] = [part for part in (ROOT / '.pre-commit-config.yaml').read_text().split('- repo:') if 'ruff' in part]
    assert f'rev: v{extras["test"][1].removeprefix("ruff==")}\n' in hook
