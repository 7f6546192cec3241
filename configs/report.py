"""One page about all runs in a folder: scores beside the paper's, its tables and figures, curves, cost, samples.

    python -m gpt1_jax.main --config=configs/report.py --config.runs=runs --workdir=runs/report

Writes WORKDIR/report.html, which needs no network, and the same as WORKDIR/report.md, for GitHub. `runs` is searched
for the workdirs of all tasks, finished or not; what is missing or damaged is named there.

Hardware: any. Time: 4 to 15 s for 114 runs on 2 busy CPU cores (measured), most of it for the figures.
"""

import ml_collections

from gpt1_jax.config import check_no_argument


def get_config(arg: str = '') -> ml_collections.ConfigDict:
    check_no_argument('report', arg)
    return ml_collections.ConfigDict(dict(task='report', runs='')).lock()  # the folder that holds the runs
