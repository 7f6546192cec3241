"""The four sets made of documentation strings: what they promise, checked on files made up here."""

import collections
import itertools

import numpy as np
import pytest

from gpt1_jax.data.corpus.docstrings import DocFile
from gpt1_jax.data.labelled import docstring_sets
from gpt1_jax.data.labelled.loading import load_examples
from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.errors import UserError

PACKAGES = ('tensorflow', 'scipy', 'keras', 'jax', 'small')
NAMES = ('docs_package', 'docs_follows', 'docs_same', 'docs_continuation')
FILLER = 'this these other which where whose with from into when then more most some many each same'.split()


def word(number):
    """A word of its own for every number."""
    return 'q' + ''.join('abcdefghij'[int(digit)] for digit in f'{number:06d}')


def make_files(per_package=40, docstrings=3, parts=4, dev=0.25, packages=PACKAGES):
    """Docstrings of `parts` passages of 20 words; the second and the last but one are found nowhere else."""
    rng, files, number = np.random.default_rng(0), [], 0
    for package in packages:
        for i in range(per_package if package != 'small' else 2):
            texts = []
            for _ in range(docstrings):
                sentences = []
                for _ in range(parts):
                    number += 2
                    words = ['Passage', word(number), *rng.choice(FILLER, 16), word(number + 1), 'here.']
                    sentences.append(' '.join(words))
                texts.append('\n\n'.join(sentences))
            files.append(DocFile(package, f'{package}/f{i:03d}.py', i < dev * per_package, texts))
    return files


def beginning(passage):
    return ' '.join(passage.split()[: docstring_sets._MOST_OF_PAIR])


def origins(files):
    """The text's (file, number of docstring, passage): passages, and both parts of each where it is cut."""
    found = {}
    for file in files:
        for n, docstring in enumerate(file.docstrings):
            for passage in docstring.split('\n\n'):
                words = passage.split()
                parts = [' '.join(part) for cut in range(8, 13) for part in (words[:cut], words[cut:])]
                for text in (passage, beginning(passage), *parts):
                    assert text not in found
                    found[text] = file, n, passage
    return found


FILES = make_files()
ORIGIN = origins(FILES)
PAIRS = ('docs_follows', 'docs_same')


def build(name, **kwargs):
    return docstring_sets.build_from_files(name, FILES, **{'train': 200, 'dev': 80, **kwargs})


def texts_of(examples):
    """All passages of each example."""
    flat = lambda value: value if isinstance(value, list) else [value]
    return [[text for value in row for text in flat(value)] for row in zip(*examples.fields.values())]


def test_passages_are_running_text_of_some_length():
    docstring = (
        """Returns the sum of the values along one axis of the array that was given.

    >>> add([1, 2, 3])

The values are summed in pairs, which is a little slower but keeps the errors small. This is
the way that most people expect. Short.

Parameters
----------
x : array_like
    The values that are going to be summed up here, in any order that may be wanted by the caller.

See https://example.org/a/very/long/address for all of the things that are not explained in here at all.

"""
        + 'word ' * 95
    )
    found = docstring_sets.passages(docstring)
    prose = [passage for passage in found if not passage.startswith('word')]
    assert ' '.join(prose) == (
        'Returns the sum of the values along one axis of the array that was given. '
        'The values are summed in pairs, which is a little slower but keeps the errors small.'
    )
    assert found[len(prose)].startswith('word')  # what stood between, 9 words, is too short
    assert all(10 <= len(passage.split()) <= docstring_sets._MOST_WORDS <= 40 for passage in found)
    assert not any('address' in passage or 'caller' in passage for passage in found)
    assert docstring_sets.passages('Too short.') == docstring_sets.passages('') == []


@pytest.mark.parametrize('name', NAMES)
def test_balanced_deterministic_and_split_by_file(name):
    splits, again = build(name), build(name)
    dataset = REGISTRY[name]
    # The one numerical package has no more than two pairs from each of three docstrings in 30 and in 10 files.
    for part, size, pairs in (('train', 200, 180), ('dev', 80, 60)):
        assert len(splits[part]) == (pairs if name == 'docs_same' else size)
    for part, examples in splits.items():
        assert examples.fields == again[part].fields and tuple(examples.fields) == dataset.fields
        assert examples.labels.tolist() == again[part].labels.tolist() and examples.labels.dtype == np.int32
        counts = collections.Counter(examples.labels.tolist())
        assert counts == {label: len(examples) // len(dataset.labels) for label in range(len(dataset.labels))}
        assert len(set(examples.ids)) == len(examples)
        for texts in texts_of(examples):
            assert all(ORIGIN[text][0].held_out == (part == 'dev') for text in texts)
    assert build(name, seed=1)['train'].fields != splits['train'].fields
    labels = splits['train'].labels
    assert len(set(labels[:20].tolist())) == len(dataset.labels)  # shuffled, so that any first part is of use


def test_package():
    names = sorted(PACKAGES[:4])  # the four with most files
    examples = build('docs_package')['train']
    for (text,), label in zip(texts_of(examples), examples.labels, strict=True):
        assert ORIGIN[text][0].package == names[label]
    assert len({text for (text,) in texts_of(examples)}) == len(examples)


def test_package_leaves_out_passages_that_name_one():
    names = ['SciPy', 'keras', 'tf.function', 'TensorFlow', 'my_tf_op']
    files = []
    for i, file in enumerate(FILES):
        name = names[i % len(names)] if i % 2 else 'Wtfx'
        docstrings = [text.replace('Passage', name) for text in file.docstrings]
        files.append(DocFile(file.package, file.path, file.held_out, docstrings))
    for examples in docstring_sets.build_from_files('docs_package', files, train=100, dev=40).values():
        assert {text.split()[0] for (text,) in texts_of(examples)} == {'Wtfx'}


def package_of(text, origin=ORIGIN):
    return origin[text][0].package


def is_true(name, label):
    return REGISTRY[name].labels[label] in ('follows', 'same')


def assert_pair(name, first, second, origin=ORIGIN):
    """These are the halves of one passage, or two passages of one docstring."""
    (file1, n1, passage1), (file2, n2, passage2) = origin[first], origin[second]
    if name == 'docs_same':
        assert (file1.path, n1) == (file2.path, n2)
        assert first == beginning(passage1) and second == beginning(passage2)
        assert file1.docstrings[n1].index(first) < file1.docstrings[n1].index(second)
    else:
        assert passage1 == passage2 == f'{first} {second}'


def check_pairs(name, examples, origin=ORIGIN):
    """True ones are pairs, false ones are of two packages, and each text is used once."""
    for (first, second), label in zip(texts_of(examples), examples.labels, strict=True):
        if is_true(name, label):
            assert_pair(name, first, second, origin)
        else:
            assert package_of(first, origin) != package_of(second, origin)
    for column in examples.fields.values():
        assert len(set(column)) == len(column)


def check_choices(examples, origin=ORIGIN):
    """One ending is of the context's passage, three are of other packages, each right one is used once."""
    right, wrong = collections.Counter(), collections.Counter()
    for context, endings, label in zip(*examples.fields.values(), examples.labels, strict=True):
        assert len(endings) == len(set(endings)) == 4
        assert_pair('docs_continuation', context, endings[label], origin)
        others = [ending for i, ending in enumerate(endings) if i != label]
        assert package_of(context, origin) not in {package_of(other, origin) for other in others}
        right[endings[label]] += 1
        wrong.update(others)
    assert not right or max(right.values()) == 1
    assert not wrong or max(wrong.values()) - min(wrong.values()) <= 1
    return right, wrong


@pytest.mark.parametrize('size', [200, 10**6])
@pytest.mark.parametrize('name', PAIRS)
@pytest.mark.parametrize('part', ['train', 'dev'])  # only dev has the package 'small': the halves are the same
def test_true_and_false_pairs(name, part, size):
    examples = build(name, train=size, dev=size)[part]
    check_pairs(name, examples)
    firsts, seconds = examples.fields.values()
    wrong = [text for text, label in zip(seconds, examples.labels) if not is_true(name, label)]
    home, foreign = ({package_of(text) for text in texts} for texts in (firsts, wrong))
    assert home == {'scipy'} and {'jax', 'keras', 'tensorflow'} <= foreign <= set(PACKAGES) - home
    # In each package of the firsts as many are true as false.
    counts = collections.Counter(
        (package_of(first), is_true(name, label)) for first, label in zip(firsts, examples.labels)
    )
    assert all(abs(counts[package, True] - counts[package, False]) <= 1 for package in home)


@pytest.mark.parametrize('size', [200, 10**6])
@pytest.mark.parametrize('part', ['train', 'dev'])
def test_continuation(part, size):
    right, wrong = check_choices(build('docs_continuation', train=size, dev=size)[part])
    assert {package_of(text) for text in right} == {'scipy'}
    assert {'jax', 'keras', 'tensorflow'} <= {package_of(text) for text in wrong} <= set(PACKAGES) - {'scipy'}


def test_packages_of_one_subject():
    """Every second one is then the subject of the right texts."""
    for packages in (('scipy', 'numpy'), ('jax', 'keras', 'small')):
        files = make_files(packages=packages)
        first, second = docstring_sets.build_from_files('docs_same', files, train=40, dev=20)['train'].fields.values()
        origin = origins(files)
        assert {package_of(text, origin) for text in first} <= set(sorted(packages)[::2])
        assert {package_of(text, origin) for text in second} >= set(sorted(packages)[1::2])


def test_repeated_passages_are_used_once():
    copies = [DocFile(file.package, 'copy/' + file.path, file.held_out, file.docstrings) for file in FILES]
    for name in NAMES:
        examples = docstring_sets.build_from_files(name, FILES + copies, train=10**6, dev=80)['train']
        first = next(iter(examples.fields.values()))
        assert len(set(first)) == len(first)


@pytest.mark.parametrize('name', NAMES)
def test_one_package_is_too_little(name):
    """Where there is no other package there are no wrong texts."""
    with pytest.raises(UserError, match=f'only 0 train examples of {name!r}.*name larger ones'):
        docstring_sets.build_from_files(name, [file for file in FILES if file.package == 'jax'])


def test_too_little_text_and_other_names():
    with pytest.raises(UserError, match="only 0 train examples of 'docs_package'"):
        docstring_sets.build_from_files('docs_package', [f for f in FILES if f.package in ('jax', 'keras')])
    with pytest.raises(UserError, match="only 0 dev examples of 'docs_same'"):
        docstring_sets.build_from_files('docs_same', [file for file in FILES if not file.held_out])
    with pytest.raises(UserError, match="docs: There is no data set 'sst2'"):
        load_examples(REGISTRY['sst2'], 'docs:', 'train')
    with pytest.raises(UserError, match='docs: There is no test split'):
        load_examples(REGISTRY['docs_same'], 'docs:', 'test')


@pytest.mark.slow
def test_installed_packages():
    """The real thing, on packages that every installation has."""
    train = load_examples(REGISTRY['docs_continuation'], 'docs:numpy,scipy', 'train', limit=100)
    dev = load_examples(REGISTRY['docs_continuation'], 'docs:numpy,scipy', 'dev')
    assert len(train) == 100 and len(dev) >= 50
    whole = [
        {f'{context} {endings[label]}' for context, endings, label in zip(*examples.fields.values(), examples.labels)}
        for examples in (train, dev)
    ]
    assert not whole[0] & whole[1]  # no passage is in both; short beginnings may be


@pytest.mark.parametrize('packages', [1, 2, 3, 5])
@pytest.mark.parametrize('name', NAMES)
def test_few_files(name, packages):
    """Either an error that says so, or right examples."""
    outcomes = set()
    for per_package, docstrings in itertools.product((0, 1, 2, 3, 5, 8), (0, 1, 2)):
        files = make_files(per_package, docstrings, dev=0.5, packages=PACKAGES[:packages])
        origin = origins(files)
        try:
            splits = docstring_sets.build_from_files(name, files, train=10**6, dev=40)
        except UserError:
            outcomes.add('error')
            continue
        outcomes.add('examples')
        for examples in splits.values():
            if name in PAIRS:
                check_pairs(name, examples, origin)
            elif name == 'docs_continuation':
                check_choices(examples, origin)
            assert len(set(collections.Counter(examples.labels.tolist()).values())) == 1  # balanced
    assert 'error' in outcomes
    least = {'docs_package': 4}.get(name, 2)
    assert ('examples' in outcomes) == (packages >= least)
