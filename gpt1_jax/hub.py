"""Repositories of the Hugging Face hub, fetched by huggingface_hub into its cache, and local copies of them.

huggingface_hub obeys HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN and HF_ENDPOINT of the environment, and locks a
file while it downloads it, so that several processes download it once.
"""

import functools
import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from absl import logging
from etils import epath

from gpt1_jax import network
from gpt1_jax.errors import UserError
from gpt1_jax.files import import_package, read_json, size_of, write_atomically

_NAME = re.compile(r'([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([^@:]+))?(?::([^@:]+))?')


class Name(NamedTuple):
    """OWNER/NAME[@REVISION][:CONFIG]"""

    repository: str
    revision: str | None
    config: str


class Repository(NamedTuple):
    """The files of a repository at one commit, or of a local folder.

    Attributes:
      where: its URI, for messages.
      commit: '' for a local folder.
      sizes: file -> bytes.
      get: fetches those of the given files that are not here yet; returns the folder that holds all. Raises UserError.
    """

    where: str
    commit: str
    sizes: Mapping[str, int]
    get: Callable[[Sequence[str]], epath.Path]


def parse(text: str) -> Name | None:
    """The parts of a name on the hub; None if it cannot be one."""
    found = _NAME.fullmatch(text)
    return Name(found[1], found[2], found[3] or '') if found else None


def open_folder(where: str, folder: epath.Path) -> Repository:
    """A local copy of a repository."""
    return Repository(where, '', _sizes_below(folder), lambda files: folder)


@functools.cache  # so that all parts of a run read the same commit
def open_repository(where: str, name: Name, kind: str, download: bool = True) -> Repository:
    """A repository of the hub; if the hub cannot be asked, what its cache has of it, with a warning.

    Args:
      where: its URI, for messages.
      kind: 'model' or 'dataset'.
      download: whether the hub may be asked.

    Raises:
      UserError: no such repository or revision, no right to read it, or neither hub nor cache has it; in about 20
        seconds at most.
    """
    impossible = f'{where} cannot be fetched'
    constants = import_package('huggingface_hub.constants', impossible)
    one = _Remote(where, name, kind, import_package('huggingface_hub', impossible), constants)
    if not download:
        return one.cached('data.download is False')
    if constants.is_offline_mode():
        return one.cached('HF_HUB_OFFLINE is set')
    fault = network.unreachable(constants.ENDPOINT)
    return one.cached(fault) if fault else one.asked()


class _Remote:
    """What `open_repository` does, step by step."""

    def __init__(self, where: str, name: Name, kind: str, library, constants):
        self._where, self._name, self._kind, self._library = where, name.repository, kind, library
        self._revision = name.revision
        self._page = f'{constants.ENDPOINT}/{"datasets/" if kind == "dataset" else ""}{self._name}'
        # The cache is shared with other programs, and its layout documented.
        self._storage = epath.Path(constants.HF_HUB_CACHE) / f'{kind}s--{self._name.replace("/", "--")}'
        self._reference = self._storage / 'refs' / (name.revision or constants.DEFAULT_REVISION)

    def asked(self) -> Repository:
        """The repository as the hub has it now."""
        errors = import_package('huggingface_hub.errors', f'{self._where} cannot be fetched')
        look_up = functools.partial(
            self._library.HfApi().repo_info,
            self._name,
            repo_type=self._kind,
            revision=self._revision,
            timeout=network.SECONDS,
            files_metadata=True,
        )
        try:
            info = network.within(network.SECONDS, look_up)
        except errors.GatedRepoError as error:
            raise self._refusal(
                f'{self._page} needs the permission of its owner. Ask for it there, log in with  hf auth login , '
                'and run the command again'
            ) from error
        except errors.RevisionNotFoundError as error:
            raise self._refusal(
                f'{self._page} has no revision {self._revision!r}. Name one of its branches, tags or commits'
            ) from error
        except Exception as error:  # of many types, for the many faults of a network
            status = getattr(getattr(error, 'response', None), 'status_code', 500)
            if isinstance(error, errors.HFValidationError) or status in (401, 404):
                raise self._refusal(
                    f'the hub has no {self._kind} {self._name}, or it is private. Correct the name, or log in with  '
                    'hf auth login'
                ) from error
            if 400 <= status < 500 and status not in (408, 429):
                raise self._refusal(
                    f'{self._page} answers with status {status}. Log in with  hf auth login , and run the command again'
                ) from error
            return self.cached(_reason(error))
        files = {file.rfilename: file for file in info.siblings}
        climbing = [name for name in files if os.path.isabs(name) or '..' in name.split('/')]
        if climbing or not re.fullmatch('[0-9a-f]{40}', info.sha or ''):
            raise self._refusal(f'{self._page} has impossible names ({[info.sha, *climbing][-1]!r}). Use another one')
        sizes = {name: file.lfs.size if file.lfs else file.size for name, file in files.items()}
        try:  # for times when the hub cannot be asked: which commit this is, and the files that belong to it
            self._reference.parent.mkdir(parents=True, exist_ok=True)
            self._record(info.sha).parent.mkdir(parents=True, exist_ok=True)
            own = f'.{uuid.uuid4().hex}'  # the processes of a run do this at the same time
            write_atomically(self._record(info.sha), [json.dumps(sizes).encode()], own)
            write_atomically(self._reference, [info.sha.encode()], own)
        except (OSError, UserError) as error:
            logging.warning("%s: The hub's cache cannot be written (%s).", self._where, error)
        logging.info('%s: commit %s of %s', self._where, info.sha, self._page)
        return Repository(self._where, info.sha, sizes, lambda wanted: self._fetch(info.sha, files, sizes, wanted))

    def cached(self, fault: str) -> Repository:
        """The repository as the cache has it. fault: why the hub is not asked."""
        commit = (
            self._reference.read_bytes().decode(errors='replace').strip()
            if self._reference.exists()
            else self._reference.name
        )
        folder, record = self._storage / 'snapshots' / commit, self._record(commit)
        if not folder.is_dir():
            raise self._refusal(f'it cannot be fetched ({fault}). {self._by_hand()}')
        there = _sizes_below(folder)
        sizes = read_json(record, {str: (int, type(None))}, 'Delete it.') if record.exists() else there
        logging.warning(
            "%s: Commit %s in the hub's cache is read, %d of %s files, because the hub is not asked (%s).",
            self._where,
            commit,
            len(there),
            len(sizes) if record.exists() else 'an unknown number of',
            fault,
        )

        def get(files):
            if missing := [file for file in files if file not in there]:
                more = f' and {len(missing) - 1} more of the {len(files)} files needed' * (len(missing) > 1)
                raise UserError(
                    f"{self._where}: The hub's cache lacks {missing[0]}{more}, which cannot be fetched ({fault}). "
                    f'{self._by_hand()}.'
                )
            return _checked(folder, files, sizes)

        return Repository(self._where, commit, sizes, get)

    def _fetch(self, commit, files, sizes, wanted):
        folder = self._storage / 'snapshots' / commit
        missing = [file for file in wanted if not (folder / file).exists()]
        if missing:
            megabytes = sum(sizes[file] or 0 for file in missing) / 1e6
            logging.info('%s: fetching %d files, %.1f MB', self._where, len(missing), megabytes)
        for file in missing:
            try:
                path = self._library.hf_hub_download(
                    self._name, file, repo_type=self._kind, revision=commit, etag_timeout=network.SECONDS
                )
            except Exception as error:  # of many types, see above
                raise UserError(
                    f'{self._where}: The file {file} cannot be fetched ({_reason(error)}). Run the command again, '
                    f'which keeps the files that are whole. {self._by_hand()}.'
                ) from error
            self._verify(epath.Path(path), files[file])
        return _checked(folder, wanted, sizes)

    def _verify(self, path, file):
        """Against the hub's checksum: huggingface_hub compares it only for what comes by Xet."""
        if file.lfs:
            expected, found = file.lfs.sha256, hashlib.sha256()
        else:
            expected, found = file.blob_id, hashlib.sha1(b'blob %d\0' % size_of(path))
        with path.open('rb') as content:
            while block := content.read(2**20):
                found.update(block)
        if expected not in (None, found.hexdigest()):
            os.remove(os.path.realpath(path))
            path.unlink(missing_ok=True)  # the link to it
            raise UserError(
                f'{self._where}: The file {file.rfilename} came with another checksum than the hub gives, and was '
                'deleted. Run the command again to fetch it again.'
            )

    def _record(self, commit):
        return self._storage / 'gpt1_jax' / f'{commit}.json'

    def _refusal(self, what):
        return UserError(f'{self._where}: There is no such folder here, and {what}.')

    def _by_hand(self):
        kind = '' if self._kind == 'model' else f' --repo-type {self._kind}'
        revision = f' --revision {self._revision}' if self._revision else ''
        return (
            f'Where there is a network:  hf download {self._name}{kind}{revision} --local-dir DIR , and then give '
            'hf:DIR'
        )


def _sizes_below(folder):
    """The sizes of all files below a folder, by path, without those of git and of huggingface_hub."""
    return {
        (root / file).relative_to(folder).as_posix(): size_of(root / file)
        for root, _, files in folder.walk()
        for file in files
        if not {'.git', '.cache'} & {*root.relative_to(folder).parts} and (root / file).exists()
    }


def _checked(folder, files, sizes):
    """The folder. Raises UserError if one of the files is truncated."""
    for file in files:
        size = size_of(folder / file)
        if sizes.get(file) not in (None, size):
            raise UserError(
                f'{folder / file}: The file has {size:,} of {sizes[file]:,} bytes. Delete it, and run the command '
                'again where there is a network.'
            )
    return folder


def _reason(error):
    """Why something was not fetched, in a few words."""
    error = error.__cause__ or error
    text = ' '.join(str(error).split()).partition('. ')[0].rstrip('.')[:200]
    return f'{type(error).__name__}: {text}' if text else type(error).__name__
