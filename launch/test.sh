#!/usr/bin/env bash
# Checks style and runs the tests in the environment that quickstart.sh uses:
#
#   bash launch/test.sh [flags of pytest, such as -m 'not slow' for a quarter of the time]

source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
"$PYTHON" -m ruff check
"$PYTHON" -m ruff format --check
exec "$PYTHON" -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder "$@" # two processes, one file in each
