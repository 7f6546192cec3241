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

NAMES = ('docs_number', 'docs_next', 'docs_same', 'docs_cloze')
SINGULAR, PLURAL = ('is', 'was', 'has', 'does'), ('are', 'were', 'have', 'do')
CHOICES = ('the', 'of', 'to', 'is')
ANSWERS = ('is', 'are', 'the', 'of', 'to', 'was', 'were', 'the', 'of', 'to', 'have', 'has', 'do', 'the', 'is')
SIZES = {'train': 200, 'dev': 40, 'test': 60}
MANY = dict.fromkeys(SIZES, 10**6)


def word(number):
    """A word of its own for every number."""
    return 'q' + ''.join('abcdefghij'[int(digit)] for digit in f'{number:06d}')


def own_words(first, n):
    return [word(number) for number in range(first, first + n)]


def as_text(words):
    return ' '.join(words).capitalize() + '.'


def make_files(per_package=60, sentences=16):
    """Sentences with one answer between own words. Packages and lengths have their favourite answers."""
    rng, files, number = np.random.default_rng(0), [], 0
    for i, package in enumerate(('jax', 'keras', 'scipy')):
        for j in range(per_package):
            paragraphs = []
            for _ in range(sentences):
                before, after = rng.integers(3, 13), rng.integers(4, 10)
                answer = ANSWERS[i + before if rng.random() < 0.3 else rng.integers(len(ANSWERS))]
                paragraphs.append(as_text([*own_words(number, before), answer, *own_words(number + before, after)]))
                number += before + after
            docs = ['\n\n'.join(paragraphs[: sentences // 2]), ' '.join(paragraphs[sentences // 2 :])]
            files.append(DocFile(package, f'{package}/f{j:03d}.py', j % 2 == 1, docs))
    return files


def index_of(files):
    """Own word -> (file, words of its sentence, which of them)."""
    index = {}
    for file in files:
        for sentence in ' '.join(file.docstrings).replace('. ', '.\n').split('\n'):
            for i, found in enumerate(sentence.split()):
                if found.lower().startswith('q'):
                    index[found.lower().rstrip('.')] = file, sentence.split(), i
    return index


FILES = make_files()
INDEX = index_of(FILES)
PARTS = docstring_sets.by_split(FILES)


def place(text, index=INDEX):
    """(file, sentence, the number of the text's first word in it)"""
    words = text.split()
    i = next(i for i, found in enumerate(words) if found.lower().startswith('q'))
    file, sentence, position = index[words[i].lower().rstrip('.')]
    start = position - i
    assert start >= 0 and sentence[start : start + len(words)] == words
    return file, sentence, start


def word_after(text, index=INDEX):
    _, sentence, start = place(text, index)
    assert start == 0
    return sentence[len(text.split())]


def rows(examples):
    return list(zip(*examples.fields.values(), examples.labels.tolist(), strict=True))


def check(name, examples, index=INDEX):
    """Every label is true, and no sentence is there more often than promised."""
    texts = collections.Counter(row[0] for row in rows(examples))
    assert set(texts.values()) == {2 if name == 'docs_same' else 1}
    for text, *second, label in rows(examples):
        label_name = REGISTRY[name].labels[label]
        if name == 'docs_same':
            check_pair(text, *second, label_name == 'same', index)
            continue
        following = word_after(text, index)
        assert 3 <= len(text.split()) <= 16
        if name == 'docs_number':
            assert following in {'singular': SINGULAR, 'plural': PLURAL}[label_name]
        elif name == 'docs_next':
            assert (second == [following]) == (label_name == 'follows') and following in ('the', 'of')
        else:
            assert second[0][label] == following and sorted(second[0]) == sorted(CHOICES)


def check_pair(first, second, right, index):
    (file, sentence, start), (other_file, other, cut) = place(first, index), place(second, index)
    assert start == 0 and cut + len(second.split()) == len(other)
    assert (sentence == other) == right and (not right or cut == len(first.split()))
    assert file.package == other_file.package and len(second.split()) == len(sentence) - len(first.split())


def kinds(name, examples, index=INDEX):
    """(package, length) -> how often each of the answers between which nothing but language may tell."""
    found = collections.defaultdict(collections.Counter)
    for text, *second, label in rows(examples):
        package = place(text, index)[0].package
        if name == 'docs_same':
            found[package, len(second[0].split()), 'second'][label] += 1
            found[package, len(text.split()), 'first'][label] += 1
        else:
            alike = package, len(text.split()) // 3
            if name != 'docs_number':
                found[*alike, 'word'][word_after(text, index)] += 1
            if name != 'docs_cloze':
                found[*alike, 'label'][label] += 1
    return found


@pytest.mark.parametrize('sizes', [SIZES, MANY], ids=['some', 'all'])
@pytest.mark.parametrize('name', NAMES)
def test_labels_are_true_and_neither_subject_nor_length_tells_them(name, sizes):
    for split, examples in docstring_sets.make(name, PARTS, sizes=sizes).items():
        assert len(examples) == SIZES[split] if sizes is SIZES else len(examples) > SIZES[split]
        check(name, examples)
        found = kinds(name, examples)
        assert len({package for package, *_ in found}) == 3 and len({length for _, length, _ in found}) >= 3
        for (*_, what), counts in found.items():
            assert len(counts) == (4 if (name, what) == ('docs_cloze', 'word') else 2)
            assert len(set(counts.values())) == 1


@pytest.mark.parametrize('name', NAMES)
def test_random_but_the_same_each_time(name):
    splits, again, other = (docstring_sets.make(name, PARTS, seed, SIZES) for seed in (0, 0, 1))
    for split, examples in splits.items():
        assert examples.fields == again[split].fields and tuple(examples.fields) == REGISTRY[name].fields
        assert examples.labels.tolist() == again[split].labels.tolist() and examples.labels.dtype == np.int32
        first, of_other = ({place(row[0])[1][0] for row in rows(found[split])} for found in (splits, other))
        assert first != of_other  # other sentences, not only in another order
        assert len(set(examples.ids)) == len(examples)
        labels = examples.labels.tolist()
        # In random order: any first part has all labels, and labels do not repeat with a period.
        assert set(labels[:20]) == set(range(len(REGISTRY[name].labels)))
        assert all(labels[:-period] != labels[period:] for period in range(1, 9))


@pytest.mark.parametrize('name', NAMES)
def test_a_file_is_of_one_split(name):
    splits = {}
    for split, examples in docstring_sets.make(name, PARTS, sizes=MANY).items():
        texts = [text for row in rows(examples) for text in row[: 2 if name == 'docs_same' else 1]]
        splits[split] = {place(text)[0].path for text in texts}
    train, held_out = ({file.path for file in FILES if file.held_out == side} for side in (False, True))
    assert splits['train'] == train  # every file gives some
    assert splits['dev'] | splits['test'] == held_out and not splits['dev'] & splits['test']
    assert 0.25 < len(splits['dev']) / len(held_out) < 0.55


def test_a_second_text_alone_says_nothing():
    # One more group than an even number of them: words are also then as often right as wrong.
    parts = {'train': [('p', [[*own_words(20 * i, 6), word, 'x'] for i in range(9) for word in ('the', 'of')])]}
    uneven = docstring_sets.make('docs_next', parts, sizes={'train': 10**6})['train']
    for examples in (uneven, *docstring_sets.make('docs_next', PARTS, sizes=SIZES).values()):
        counts = collections.Counter(zip(examples.fields['word'], examples.labels.tolist()))
        assert all(counts[word, 0] == counts[word, 1] > 0 for word in ('the', 'of'))
    for examples in docstring_sets.make('docs_same', PARTS, sizes=SIZES).values():
        counts = collections.Counter(zip(examples.fields['second'], examples.labels.tolist()))
        assert set(counts.values()) == {1} and len(counts) == 2 * len(set(examples.fields['second']))
    examples = docstring_sets.make('docs_cloze', PARTS, sizes=SIZES)['train']
    assert len(set(map(tuple, examples.fields['words']))) == 24  # every order of the four
    places = np.bincount(examples.labels, minlength=4)
    assert places.min() > 30 and places.max() < 75  # random: 50 +- 6 of 200


def test_sentences_are_cut_at_any_place_that_fits():
    parts = {'train': [('p', [[word(i), *[('is', 'are')[i % 2]] * 20] for i in range(600)])]}
    examples = docstring_sets.make('docs_number', parts, sizes={'train': 500})['train']
    assert {len(text.split()) for text in examples.fields['text']} == set(range(3, 17))
    parts = {'train': [('p', [own_words(20 * i, 7 + i % 15) for i in range(400)])]}
    examples = docstring_sets.make('docs_same', parts, sizes={'train': 400})['train']
    for column in examples.fields.values():
        assert {len(text.split()) for text in column} == set(range(4, 13))


@pytest.mark.parametrize('subject', ['it', 'There', 'which', '(this', '`these`', 'they', 'and', 'to', 'must', 'will'])
def test_no_subject_before_the_verb(subject):
    """Such a word tells the verb's number by itself, or the verb has none."""
    sentences = lambda before: [['a', 'b', before, verb, 'c'] for verb in SINGULAR + PLURAL] * 5
    make = lambda before: docstring_sets.make('docs_number', {'train': [('p', sentences(before))]}, 0, {'train': 99})
    assert len(make('value')['train']) == 40
    with pytest.raises(UserError, match='only 0 train examples'):
        make(subject)


def test_halves_that_fit_two_sentences_are_used_once():
    """Else the wrong pair would be right as well."""
    first, second = own_words(0, 4), own_words(100, 4)
    sentences = [[*own_words(10 * i, 4), *second] for i in range(20, 60)]
    sentences += [[*first, *own_words(10 * i, 4)] for i in range(60, 100)]
    sentences += [own_words(10 * i, 8) for i in range(200, 208)]
    examples = docstring_sets.make('docs_same', {'train': [('p', sentences)]}, sizes={'train': 16})['train']
    both = {tuple(words) for words in sentences}
    for a, b, label in rows(examples):
        assert (tuple(f'{a} {b}'.split()) in both) == label
    assert set(collections.Counter(examples.fields['first']).values()) == {2}


@pytest.mark.parametrize('name', NAMES)
def test_a_large_file_does_not_fill_a_set(name):
    answers = ('is', 'are') if name == 'docs_number' else CHOICES
    starts = [range(100 * i, 100 * i + 4) for i in range(40)] + [range(4000, 4800)]  # the numbers of sentences
    sentence = lambda i: [*own_words(12 * i, 6), answers[i % len(answers)], *own_words(12 * i + 6, 6)]
    files = [('p', [sentence(i) for i in numbers]) for numbers in starts]
    origin = {words[0]: i for i, (_, sentences) in enumerate(files) for words in sentences}
    examples = docstring_sets.make(name, {'train': files}, sizes={'train': 40})['train']
    counts = collections.Counter(origin[row[0].split()[0]] for row in rows(examples))
    assert len(examples) == 40 and len(counts) >= 15 and max(counts.values()) <= 6


NOT_RUNNING_TEXT = [
    'A Heading Of Five Words\n-----------------------',
    'Only four words here.',
    '>>> add one to all of the values',
    '  The values are indented by two blanks here.',
    'x : array_like\n    The values that are summed up here.',
    '- the first of the points on a list',
    'With `code` and x1 and 2 this is too little.',
    'See https://example.org for all of the other things.',
    'One of the cells | another of the cells',
]


def test_running_text():
    first, last = 'Returns the sum of\nall values.', 'The values, which (as a whole) are summed: A few at once.'
    docstring = '\n\n'.join([first, *NOT_RUNNING_TEXT, last])
    assert docstring_sets.running_text(docstring) == (first.replace('\n', ' '), last)
    assert [docstring_sets.running_text(text) for text in ('', *NOT_RUNNING_TEXT)] == [()] * 10
    assert sentences_of([DocFile('p', 'p/a.py', False, [docstring])])['train'] == [
        'Returns the sum of all values.',
        'The values, which (as a whole) are summed:',
        'A few at once.',
    ]


def sentences_of(files):
    """Split -> its sentences."""
    joined = lambda part: [' '.join(words) for _, sentences in part for words in sentences]
    return {split: joined(part) for split, part in docstring_sets.by_split(files).items()}


@pytest.mark.parametrize('train_path, held_out_path', [('p/a.py', 'p/z.py'), ('p/z.py', 'p/a.py')])
def test_held_out_sentences_that_are_like_those_of_train_are_left_out(train_path, held_out_path):
    long, short = own_words(0, 20), own_words(100, 6)
    eight = as_text([*own_words(200, 5), *long[3:11], *own_words(210, 5)]).replace(' ', ', ')
    seven = as_text([*own_words(300, 5), *long[3:10], *own_words(310, 5)])
    train = DocFile('p', train_path, False, [as_text(long), as_text(short)])
    kept = [seven, as_text(short[:5]), as_text(short[1:])]
    held_out = [eight, as_text(long), as_text(short).upper().capitalize(), *kept]
    found = sentences_of([train, DocFile('p', held_out_path, True, held_out)])
    assert found['train'] == [as_text(long), as_text(short)]  # they are lost for the held-out files only
    assert found['dev'] + found['test'] == kept


def test_repeated_sentences_count_once():
    other_case = lambda docstrings: [text.replace(' q', ' Q') for text in docstrings]
    copies = [DocFile('jax', f'copy/{file.path}', file.held_out, other_case(file.docstrings)) for file in FILES]
    found = sentences_of(FILES + copies + [DocFile('z', 'z/a.py', False, FILES[0].docstrings)])
    everything = [sentence for part in found.values() for sentence in part]
    assert len({sentence.lower() for sentence in everything}) == len(everything) == len(FILES) * 16


@pytest.fixture
def calls(monkeypatch):
    """FILES stand for the packages one and two; the calls that ask for them."""
    found = []
    monkeypatch.setattr(docstring_sets, 'read_docstrings', lambda *args: found.append(args) or FILES)
    docstring_sets.build.cache_clear()
    docstring_sets._installed.cache_clear()
    return found


def test_load(calls):
    for name, split in itertools.product(NAMES, SIZES):
        examples = load_examples(REGISTRY[name], 'docs:one,two', split)
        assert examples.fields == docstring_sets.make(name, PARTS)[split].fields
        assert load_examples(REGISTRY[name], 'docs:one,two', split, limit=3).ids == examples.ids[:3]
    assert calls == [(('one', 'two'), 0.3)]  # once, whatever the set and the split


def test_training_text_is_running_text_and_has_nothing_of_dev_and_test(calls, monkeypatch):
    found = docstring_sets.training_text('one,two')
    assert calls == [(('one', 'two'), 0.3)]
    assert list(found) == [file.path for file in FILES if not file.held_out]
    whole = '\n'.join(found.values())
    for name in NAMES:
        for split, examples in docstring_sets.make(name, PARTS, sizes=SIZES).items():
            assert all((row[0] in whole) == (split == 'train') for row in rows(examples))
    docs = [[NOT_RUNNING_TEXT[0]], ['A\ntext of five words.\n\n- no text', 'And one more like that.']]
    files = [DocFile('p', f'p/{i}.py', False, docs[i]) for i in range(2)]
    monkeypatch.setattr(docstring_sets, 'read_docstrings', lambda packages, share: files if packages == () else None)
    assert docstring_sets.training_text('') == {'p/1.py': 'A text of five words.\nAnd one more like that.'}


@pytest.mark.parametrize('name', NAMES)
def test_too_little_text(name):
    fix = 'Use docs: for all installed packages, or name larger ones'
    with pytest.raises(UserError, match=f'docs: These packages give only 0 dev examples of {name!r}. {fix}'):
        docstring_sets.make(name, docstring_sets.by_split([file for file in FILES if not file.held_out]))
    with pytest.raises(UserError, match=f'only 0 train examples of {name!r}. {fix}'):
        docstring_sets.make(name, docstring_sets.by_split([file for file in FILES if file.held_out]))
    with pytest.raises(UserError, match='only 0 train'):
        docstring_sets.make(name, docstring_sets.by_split([]))
    outcomes = set()
    for per_package, sentences in ((2, 8), (4, 16), (6, 32), (8, 64)):
        files = make_files(per_package, sentences)
        try:
            for examples in docstring_sets.make(name, docstring_sets.by_split(files)).values():
                assert len(examples) >= 16
                check(name, examples, index_of(files))
            outcomes.add('examples')
        except UserError:
            outcomes.add('error')
    assert len(outcomes) == 2


def test_other_names():
    with pytest.raises(UserError, match="docs: There is no data set 'sst2', only docs_number, docs_next, docs_same, "):
        load_examples(REGISTRY['sst2'], 'docs:', 'train')
    with pytest.raises(UserError, match="no split 'dev_other'"):
        load_examples(REGISTRY['docs_same'], 'docs:', 'dev_other')


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_installed_packages(name):
    """The real thing, on packages that every installation has."""
    splits = {split: load_examples(REGISTRY[name], 'docs:numpy,scipy', split) for split in ('train', 'dev', 'test')}
    assert len(splits['train']) >= 500 and min(map(len, splits.values())) >= 100
