"""Packs tokenised books, data sets, tokenizer and packages for a machine without a network, and unpacks them there.

`pack` makes PACK/pack-1 and PACK/pack-2 with a maximum size. Each holds compressed files and manifest.json, with name,
size and SHA-256 of each. pack-1 can be used alone: its index lists only its own books. `unpack` needs only the
standard library.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import lzma
import os
import pathlib
import subprocess
import sys
import zipfile

SETS = ('cola', 'sst2', 'mrpc', 'stsb', 'rte', 'story_cloze')
PACKAGES = 'packages'  # folder of what was in the wheels
# Pure Python; '': the version installed here. Triton itself comes with PyTorch.
_WHEELS = {'ml-collections': '', 'ftfy': '', 'wcwidth': '', 'tqdm': '', 'jax-triton': '0.3.1'}
_FOLDERS = 2
_SPARE = 2**18  # bytes for the manifest and the index of a folder
_TOKENS_PER_SHARD = 2**21
# For 16-bit numbers: their two bytes have different statistics.
_FILTERS = [{'id': lzma.FILTER_LZMA2, 'preset': 6, 'lc': 0, 'lp': 1, 'pb': 1}]


# ---------------------------------------------------------------- pack


def pack(options) -> None:
    made = options.pack / 'prepared'
    shards = _prepare(options, made)
    names = [] if options.data is None else _tokenise(options, made / 'tokens', shards)
    index, root = json.loads((shards.directory / 'index.json').read_text()), pathlib.Path(shards.directory)
    wheels = _wheels(made / 'wheels')
    needed = [
        path
        for folder in (*(made / 'tokens' / name for name in names), wheels, root / 'tokenizer')
        for path in sorted(folder.iterdir())
    ]
    needed += [root / shard['file'] for shard in index['splits'].get('valid', {'shards': []})['shards']]
    books = [root / shard['file'] for shard in index['splits']['train']['shards']]
    name_of = lambda path: (
        pathlib.PurePosixPath('shards') / path.relative_to(root)
        if path.is_relative_to(root)
        else path.relative_to(made)
    ).as_posix()

    for old in options.pack.glob('pack-*/*'):  # one that is not filled again would be unpacked over the others
        old.unlink()
    folder, held = _Folder(options, 1), []
    with concurrent.futures.ProcessPoolExecutor() as pool:
        for path, data in zip(needed + books, pool.map(_compress, needed + books)):
            if not folder.takes(data):
                if path in needed:
                    raise SystemExit(f'{path.name}: The file does not fit. Raise --mib, or name fewer --sets.')
                if folder.number == _FOLDERS:
                    break
                folder.finish(_cut_index(shards, index, held))
                folder = _Folder(options, folder.number + 1)
            folder.add(name_of(path), path.read_bytes(), data)
            held += [path.name] if path in books else []
        pool.shutdown(cancel_futures=True)
    index_of_all = _cut_index(shards, index, held)
    folder.finish(index_of_all)
    print(
        f'{index_of_all["splits"]["train"]["tokens"]:,} of {index["splits"]["train"]["tokens"]:,} training tokens; '
        f'data sets: {", ".join(names) or "none"}'
    )


class _Folder:
    """PACK/pack-NUMBER while it is filled."""

    def __init__(self, options, number):
        self.number, self._path, self._size, self._entries = number, options.pack / f'pack-{number}', 0, []
        self._budget = int(options.mib * 2**20) - _SPARE
        self._path.mkdir(parents=True, exist_ok=True)

    def takes(self, data):
        return self._size + len(data) <= self._budget

    def add(self, name, content, data):
        """Adds a file. data: its content, compressed."""
        file = f'{len(self._entries):03d}.xz'
        (self._path / file).write_bytes(data)
        self._size += len(data)
        self._entries.append(
            {'file': file, 'path': name, 'bytes': len(content), 'sha256': hashlib.sha256(content).hexdigest()}
        )

    def finish(self, index):
        """Writes the manifest, and the index of the shards in this folder and earlier ones."""
        from gpt1_jax.files import sealed

        content = json.dumps(sealed(index), indent=1).encode()
        self.add('shards/index.json', content, lzma.compress(content))
        manifest = json.dumps({'folder': self.number, 'files': self._entries}, indent=1)
        (self._path / 'manifest.json').write_text(manifest + '\n')
        print(f'{self._path}: {self._size / 2**20:.1f} MiB, {len(self._entries)} files')


def _prepare(options, made):
    """The corpus as shards, small enough to fill a folder."""
    from configs import common
    from gpt1_jax.data.corpus.preparation import prepare
    from gpt1_jax.data.corpus.shards import load_shards

    scheme, _, place = options.source.partition(':')
    if scheme == 'shards':
        return load_shards(place)
    return prepare(
        common.data_defaults(source=options.source, vocab_size=options.vocab_size, tokens_per_shard=_TOKENS_PER_SHARD),
        made / 'shards',
    )


def _tokenise(options, folder, shards):
    """Writes one tokens folder per data set; returns the names of those found."""
    from gpt1_jax.data.labelled import encoding, loading
    from gpt1_jax.data.labelled.registry import REGISTRY
    from gpt1_jax.data.labelled.token_folder import write_tokens
    from gpt1_jax.data.tokenizers.loading import load_tokenizer

    tokenizer, names = load_tokenizer(shards.directory / 'tokenizer'), []
    for name in options.sets.split(','):
        dataset = REGISTRY[name]
        place = loading.folder_of(dataset, options.data)
        if place is None:
            print(f'{name}: {options.data} has no folder for it. Skipped.')
            continue
        splits = {
            split: encoding.encode(
                dataset, loading.load_examples(dataset, f'files:{place}', split), tokenizer, options.max_length
            )
            for split in ('train', 'dev')
        }
        write_tokens(
            folder / name,
            name,
            splits,
            fingerprint=tokenizer.fingerprint,
            max_length=options.max_length,
            rule=dataset.rule,
        )
        names.append(name)
    return names


def _wheels(folder):
    """Downloads pure-Python packages that the other machine may lack."""
    import importlib.metadata

    folder.mkdir(parents=True, exist_ok=True)
    for name, version in _WHEELS.items():
        version = version or importlib.metadata.version(name)
        if not any(folder.glob(f'{name.replace("-", "_")}-{version}-*')):
            pip = [
                sys.executable,
                '-m',
                'pip',
                'download',
                '--quiet',
                '--no-deps',
                '--only-binary=:all:',
                '--platform=any',
                '--implementation=py',
                '--abi=none',
            ]
            if subprocess.run([*pip, f'--dest={folder}', f'{name}=={version}']).returncode:
                raise SystemExit(
                    f'{name}: The package could not be downloaded (see above). Use a machine with a network.'
                )
    return folder


def _compress(path):
    data = pathlib.Path(path).read_bytes()
    return lzma.compress(data, filters=_FILTERS) if path.suffix == '.bin' else lzma.compress(data)


def _cut_index(shards, index, files):
    """The index of the shards with only these training files, in order, and the documents that end in them."""
    import numpy as np

    from gpt1_jax.data.tokenizers.loading import load_tokenizer

    train, end_id = index['splits']['train'], load_tokenizer(shards.directory / 'tokenizer').end_id
    kept = [shard for shard in train['shards'] if shard['file'] in files]
    tokens = sum(shard['tokens'] for shard in kept)
    documents = sum(
        int(np.sum(np.fromfile(shards.directory / shard['file'], index['dtype']) == end_id)) for shard in kept
    )
    train = {'tokens': tokens, 'documents': documents, 'shards': kept}
    return index | {'characters': None, 'splits': index['splits'] | {'train': train}}


# ---------------------------------------------------------------- unpack


def unpack(source: pathlib.Path, out: pathlib.Path) -> None:
    """Unpacks `source`, or its folders pack-1 and pack-2, into `out`; can be repeated."""
    folders = sorted(path.parent for path in [*source.glob('manifest.json'), *source.glob('pack-*/manifest.json')])
    if not folders:
        raise SystemExit(
            f'{source}: There is no manifest.json, here or in a folder pack-1. Name the folder that --pack made.'
        )
    for folder in folders:
        files = _check(folder, json.loads((folder / 'manifest.json').read_text())['files'])
        for entry in files:
            content = _content(folder, entry)
            path = out / entry['path']
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(path.name + '.tmp')
            temporary.write_bytes(content)
            os.replace(temporary, path)
            if path.suffix == '.whl':
                with zipfile.ZipFile(path) as wheel:
                    wheel.extractall(out / PACKAGES)
        size = sum(entry['bytes'] for entry in files) / 2**20
        print(f'{folder}: {len(files)} files, {size:.1f} MiB, checksums correct')
    listed = json.loads((out / 'shards' / 'index.json').read_text())['splits']['train']['shards']
    missing = [shard['file'] for shard in listed if not (out / 'shards' / shard['file']).exists()]
    if missing:
        raise SystemExit(
            f'{out}: There are {len(missing)} files missing, the first {missing[0]}. Also unpack pack-1 here.'
        )


def _check(folder, files):
    for entry in files:
        parts = pathlib.PurePosixPath(entry['path'])
        if parts.is_absolute() or '..' in parts.parts or pathlib.PurePath(entry['file']).name != entry['file']:
            raise SystemExit(f'{folder}: The path {entry["path"]!r} leads out of the folder. Copy it again.')
    return files


def _content(folder, entry):
    """A file's content, decompressed. Ends the program if it is not what was packed."""
    content = b''
    with contextlib.suppress(OSError, lzma.LZMAError, EOFError), lzma.open(folder / entry['file']) as file:
        content = file.read(entry['bytes'] + 1)  # never more: a damaged file may hold any amount
    if hashlib.sha256(content).hexdigest() != entry['sha256']:
        raise SystemExit(f'{folder / entry["file"]}: The file is missing or damaged. Copy it again.')
    return content
