"""The four sets made of documentation strings: what they promise, checked on files made up here."""

import collections

import numpy as np
import pytest

from gpt1_jax.data import docs_tasks
from gpt1_jax.data.datasets import REGISTRY, load_examples
from gpt1_jax.data.docstrings import DocFile
from gpt1_jax.errors import UserError

PACKAGES = ('tensorflow', 'scipy', 'keras', 'jax', 'small')
NAMES = ('docs_package', 'docs_follows', 'docs_same', 'docs_continuation')
FILLER = 'this these other which where whose with from into when then more most some many each same'.split()


def word(number):
    """A word of its own for every number."""
    return 'q' + ''.join('abcdefghij'[int(digit)] for digit in f'{number:06d}')


def make_files(per_package=40, docstrings=3, parts=4, dev=0.25):
    """Docstrings of `parts` passages (21 words each), which share one word of their own, the topic."""
    rng, files, topic = np.random.default_rng(0), [], 0
    for package in PACKAGES:
        for i in range(per_package if package != 'small' else 2):
            texts = []
            for _ in range(docstrings):
                topic += 1
                sentences = [' '.join(['Passage', word(100000 + 10 * topic + part), 'about', word(topic),
                                       *rng.choice(FILLER, 17)]) + '.' for part in range(parts)]
                texts.append('\n\n'.join(sentences))
            files.append(DocFile(package, f'{package}/f{i:03d}.py', i < dev * per_package, texts))
    return files


FILES = make_files()
DOCSTRING_OF = {passage: (file, n) for file in FILES for n, text in enumerate(file.docstrings)
                for passage in text.split('\n\n')}


def build(name, **kwargs):
    return docs_tasks.build_from_files(name, FILES, **{'train': 200, 'dev': 80, **kwargs})


def texts_of(examples):
    """All passages of each example."""
    flat = lambda value: value if isinstance(value, list) else [value]
    return [[text for value in row for text in flat(value)] for row in zip(*examples.fields.values())]


def test_passages_are_running_text_of_ten_to_forty_words():
    docstring = '''Returns the sum of the values along one axis of the array that was given.

    >>> add([1, 2, 3])

The values are summed in pairs, which is a little slower but keeps the errors small. This is
the way that most people expect. Short.

Parameters
----------
x : array_like
    The values that are going to be summed up here, in any order that may be wanted by the caller.

See https://example.org/a/very/long/address for all of the things that are not explained in here at all.

''' + 'word ' * 95
    found = docs_tasks.passages(docstring)
    assert found[0] == (
        'Returns the sum of the values along one axis of the array that was given. '
        'The values are summed in pairs, which is a little slower but keeps the errors small.')
    assert found[1].startswith('word')  # what stood between, 9 words, is too short
    assert all(10 <= len(passage.split()) <= 40 for passage in found)
    assert not any('axis' in passage or 'address' in passage for passage in found[1:])
    assert docs_tasks.passages('Too short.') == docs_tasks.passages('') == []


@pytest.mark.parametrize('name', NAMES)
def test_balanced_deterministic_and_split_by_file(name):
    splits, again = build(name), build(name)
    dataset = REGISTRY[name]
    assert {part: len(examples) for part, examples in splits.items()} == {'train': 200, 'dev': 80}
    for part, examples in splits.items():
        assert examples.fields == again[part].fields and tuple(examples.fields) == dataset.fields
        assert examples.labels.tolist() == again[part].labels.tolist() and examples.labels.dtype == np.int32
        counts = collections.Counter(examples.labels.tolist())
        assert counts == {label: len(examples) // len(dataset.labels) for label in range(len(dataset.labels))}
        assert len(set(examples.ids)) == len(examples)
        for texts in texts_of(examples):
            assert all(DOCSTRING_OF[text][0].held_out == (part == 'dev') for text in texts)
    assert build(name, seed=1)['train'].fields != splits['train'].fields
    labels = splits['train'].labels
    assert len(set(labels[:20].tolist())) == len(dataset.labels)  # shuffled, so that any first part is of use


def test_package():
    names = sorted(PACKAGES[:4])  # the four with most files
    examples = build('docs_package')['train']
    for (text,), label in zip(texts_of(examples), examples.labels, strict=True):
        assert DOCSTRING_OF[text][0].package == names[label]
    assert len({text for text, in texts_of(examples)}) == len(examples)


def test_package_leaves_out_passages_that_name_one():
    names = ['SciPy', 'keras', 'tf.function', 'TensorFlow', 'my_tf_op']
    files = []
    for i, file in enumerate(FILES):
        name = names[i % len(names)] if i % 2 else 'Wtfx'
        docstrings = [text.replace('Passage', name) for text in file.docstrings]
        files.append(DocFile(file.package, file.path, file.held_out, docstrings))
    for examples in docs_tasks.build_from_files('docs_package', files, train=100, dev=40).values():
        assert {text.split()[0] for text, in texts_of(examples)} == {'Wtfx'}


def test_follows():
    examples = build('docs_follows')['train']
    for (first, second), label in zip(texts_of(examples), examples.labels, strict=True):
        (file1, n1), (file2, n2) = DOCSTRING_OF[first], DOCSTRING_OF[second]
        assert file1.package == file2.package
        follows = f'{first}\n\n{second}' in file1.docstrings[n1]
        assert follows == (REGISTRY['docs_follows'].labels[label] == 'follows')
        assert follows or file1 != file2


def test_same():
    examples = build('docs_same')['train']
    for (first, second), label in zip(texts_of(examples), examples.labels, strict=True):
        (file1, n1), (file2, n2) = DOCSTRING_OF[first], DOCSTRING_OF[second]
        assert first != second
        if REGISTRY['docs_same'].labels[label] == 'same':
            assert (file1.path, n1) == (file2.path, n2)
        else:
            assert file1.path != file2.path


def test_continuation():
    examples = build('docs_continuation')['train']
    for context, endings, label in zip(*examples.fields.values(), examples.labels, strict=True):
        file, n = DOCSTRING_OF[context]
        assert len(set(endings)) == 4
        true = [f'{context}\n\n{ending}' in file.docstrings[n] for ending in endings]
        assert true == [i == label for i in range(4)]
        assert {DOCSTRING_OF[ending][0].package for ending in endings} == {file.package}
        assert [DOCSTRING_OF[ending][0].path == file.path for ending in endings] == true


@pytest.mark.parametrize('name', ['docs_follows', 'docs_same', 'docs_continuation'])
def test_the_second_text_alone_says_nothing(name):
    """Where all pairs are used, every second passage is right and wrong as often as any other."""
    right, wrong = collections.Counter(), collections.Counter()
    for seed in range(3):
        examples = docs_tasks.build_from_files(name, FILES, seed, train=10 ** 6, dev=80)['train']
        last = list(examples.fields.values())[1]
        for texts, label in zip(last, examples.labels, strict=True):
            if name == 'docs_continuation':
                right[texts[label]] += 1
                wrong.update(text for i, text in enumerate(texts) if i != label)
            else:
                true = REGISTRY[name].labels[label] in ('follows', 'same')
                (right if true else wrong)[texts] += 1
        if name == 'docs_continuation':
            often = collections.Counter(wrong[text] / right[text] for text in right)
            assert often[3.0] > 0.9 * len(right)
        else:
            assert not set(right) & set(wrong) and abs(len(right) - len(wrong)) <= 0.02 * len(right)
            right.clear(), wrong.clear()


@pytest.mark.parametrize('name', ['docs_follows', 'docs_continuation'])
def test_what_does_not_follow_shares_no_rare_word(name):
    """Some passages of other files share the topic's word here: they must never be the wrong answers."""
    shared = {word(topic): word(31) for topic in (34, 37, 40)}  # each in a file of its own
    files = [DocFile(file.package, file.path, file.held_out,
                     [' '.join(shared.get(w, w) for w in text.split(' ')) for text in file.docstrings])
             for file in FILES]
    examples = docs_tasks.build_from_files(name, files, train=10 ** 6, dev=40)['train']
    topic = lambda text: text.split()[3]
    used = 0
    for (first, *others), label in zip(texts_of(examples), examples.labels, strict=True):
        true = label if name == 'docs_continuation' else (0 if label == 0 else None)
        assert [topic(other) == topic(first) for other in others] == [i == true for i in range(len(others))]
        used += topic(first) == word(31)
    assert used > 3


def test_repeated_passages_are_used_once():
    copies = [DocFile(file.package, 'copy/' + file.path, file.held_out, file.docstrings) for file in FILES]
    for name in NAMES:
        examples = docs_tasks.build_from_files(name, FILES + copies, train=10 ** 6, dev=80)['train']
        first = next(iter(examples.fields.values()))
        assert len(set(first)) == len(first)


def test_too_little_text_and_other_names():
    with pytest.raises(UserError, match="only 0 train examples of 'docs_package'"):
        docs_tasks.build_from_files('docs_package', [f for f in FILES if f.package in ('jax', 'keras')])
    with pytest.raises(UserError, match="only 2 train examples of 'docs_same'|only 0 train"):
        docs_tasks.build_from_files('docs_same', FILES[:2])
    with pytest.raises(UserError, match="no data set 'sst2'"):
        load_examples(REGISTRY['sst2'], 'docs:', 'train')
    with pytest.raises(UserError, match='has no test split'):
        load_examples(REGISTRY['docs_same'], 'docs:', 'test')


def test_installed_packages():
    """The real thing, on one package that every installation has."""
    train = load_examples(REGISTRY['docs_continuation'], 'docs:numpy,scipy', 'train', limit=100)
    dev = load_examples(REGISTRY['docs_continuation'], 'docs:numpy,scipy', 'dev')
    assert len(train) == 100 and len(dev) >= 50
    assert not {*train.fields['context']} & {*dev.fields['context']}


@pytest.mark.parametrize('per_package, docstrings', [(4, 3), (6, 2), (8, 1), (8, 2), (10, 1), (10, 3)])
@pytest.mark.parametrize('name', ['docs_follows', 'docs_same', 'docs_continuation'])
def test_few_files(name, per_package, docstrings):
    """Wrong passages still come from other files, and the choices of an example differ."""
    files = make_files(per_package, docstrings, dev=0.5)
    path_of = {passage: file.path for file in files for text in file.docstrings
               for passage in text.split('\n\n')}
    examples = docs_tasks.build_from_files(name, files, train=10 ** 6, dev=4)['train']
    dataset = REGISTRY[name]
    for (first, *others), label in zip(texts_of(examples), examples.labels, strict=True):
        if name != 'docs_continuation':
            label = 0 if dataset.labels[label] in ('follows', 'same') else None
        true = [path_of[first] == path_of[other] for other in others]
        assert true == [i == label for i in range(len(others))]
        assert len(set(others)) == len(others)


def test_passages_without_a_common_rare_word_are_no_pair():
    files = []
    for i, file in enumerate(FILES):
        docstrings = [text.replace(text.split()[3], 'thing') if i % 2 else text for text in file.docstrings]
        files.append(DocFile(file.package, file.path, file.held_out, docstrings))
    for name in ('docs_follows', 'docs_same', 'docs_continuation'):
        examples = docs_tasks.build_from_files(name, files, train=100, dev=40)['train']
        assert not any('thing' in text for texts in texts_of(examples) for text in texts)


def test_a_pair_with_too_few_rivals_is_left_out():
    seconds = ['zero', 'alpha', 'beta', 'gamma', 'delta']
    firsts = ['gamma delta', 'other', 'other', 'other', 'other']
    pairs = [('package', f'{i}.py', *texts) for i, texts in enumerate(zip(firsts, seconds))]
    rivals = docs_tasks._rivals(pairs, {'gamma', 'delta'}, range(5), 3, by_package=True)
    assert 0 not in rivals and rivals  # only alpha and beta do not fit its first passage
    assert all(len({i, *others}) == 4 for i, others in rivals.items())
