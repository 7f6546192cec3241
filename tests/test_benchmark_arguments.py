"""The command lines of the benchmarks: mistakes are one sentence, before anything is measured."""

import importlib
import stat
import sys

import pytest

from benchmarks import arguments


@pytest.mark.parametrize(
    ('name', 'flags', 'words'),
    [
        ('cpu', ['--sizes=d1'], "argument --sizes: There is no 'd1'. Choose from d128, d256, d512, d768."),
        ('cpu', ['--dtypes=float32,float99'], "--dtypes: There is no 'float99'. Choose from float32, bfloat16."),
        ('cpu', ['--rounds=0'], '--rounds: It is 0, but must be at least 1.'),
        ('cpu', ['--torch_python={folder}/no'], '/no: This is no Python interpreter ([Errno 2] No such file'),
        ('cpu', ['--torch_python={folder}/bare'], '/bare: It lacks torch. Run {folder}/bare -m pip install -r'),
        ('generate', ['--torch_python={folder}/bare'], '/bare: It lacks torch, transformers. Run'),
        ('generate', ['--prompt=500'], 'more than 512 tokens'),
        ('generate', ['--repeats=0'], '--repeats: It is 0, but'),
        ('disk', ['--shards={folder}', '--out={folder}'], '{folder}: The folder holds no prepared shards'),
        ('bpe', ['--vocabulary={folder}', '--text=*.py'], '--vocabulary: {folder} has no encoder_bpe_40000.json. Name'),
        ('bpe', ['--vocabulary={folder}/release', '--text={folder}/*.txt'], '/*.txt names no file with text. Give a'),
        ('packing', ['--data={folder}', '--tokenizer={folder}', '--width=100'], '--width: It is 100, but must be a'),
        ('packing', ['--data={folder}', '--tokenizer={folder}', '--sets=sst2,colaa'], "--sets: 'colaa' is unknown."),
        ('packing', ['--data={folder}/no', '--tokenizer={folder}'], 'no'),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, capsys, name, flags, words):
    bare = tmp_path / 'bare'  # a Python without packages
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(bare.stat().st_mode | stat.S_IXUSR)
    (tmp_path / 'release').mkdir()
    (tmp_path / 'release' / 'encoder_bpe_40000.json').touch()
    monkeypatch.setattr(sys, 'argv', [name, *(flag.format(folder=tmp_path) for flag in flags)])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f'benchmarks.{name}').main()
    assert ended.value.code not in (0, None)
    assert words.format(folder=tmp_path) in f'{ended.value}{capsys.readouterr().err}'


def test_an_interpreter_that_has_the_packages_is_taken():
    assert arguments.interpreter('argparse', 'json')(sys.executable) == sys.executable
