#!/usr/bin/env bash
# Pre-trains and fine-tunes a small model on any machine; needs only Python 3.11 to 3.13:
#
#   bash launch/quickstart.sh [flags of gpt1_jax.main, such as --workdir=runs/first]
#
# Makes .venv in the repository root on the first run. Paths in the flags are relative to the repository root.

source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
exec "$PYTHON" -m gpt1_jax.main --config=configs/quickstart.py "$@"
