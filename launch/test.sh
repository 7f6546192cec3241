#!/usr/bin/env bash
# Runs the tests in the environment that quickstart.sh uses: bash launch/test.sh [flags of pytest]

source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
exec "$PYTHON" -m pytest -q "$@"
