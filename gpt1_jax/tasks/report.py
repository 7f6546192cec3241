"""One page about all runs in a folder."""

import time

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from gpt1_jax.errors import UserError
from gpt1_jax.files import read_json
from gpt1_jax.progress import waiting
from gpt1_jax.report import page
from gpt1_jax.report.results import Result, record
from gpt1_jax.training.partitioning import is_writer
from gpt1_jax.workdir import open_workdir


def run(config: ConfigDict, workdir: epath.Path) -> Result:
    """Writes WORKDIR/report.html and WORKDIR/report.md about the runs in `config.runs`; returns the result.

    Facts: `runs`, state ('finished', 'unfinished', 'damaged') -> their paths from that folder.
    """
    started, path = time.monotonic(), workdir / 'config.json'
    if not config.runs:
        raise UserError('runs: It is empty. Name the folder that holds the workdirs with --config.runs=DIR.')
    if path.exists() and read_json(path).get('task') != config.task:
        raise UserError(f'{workdir}: This is the workdir of another task. Give the report a --workdir of its own.')
    states = {'finished': [], 'unfinished': [], 'damaged': []}
    if is_writer():
        with waiting(f'reading the runs in {config.runs}'):
            runs = page.write(epath.Path(config.runs), workdir)
        for one in runs:
            states[one.state].append(one.name)
        logging.info('report of %s: %s', config.runs, workdir / 'report.html')
    open_workdir(config, workdir, write=is_writer())
    return record(config, workdir, started, facts={'runs': states})
