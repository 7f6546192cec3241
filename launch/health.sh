#!/usr/bin/env bash
# Checks that the environment works: trains a tiny model for some steps on random tokens, on the device that JAX finds
# (JAX_PLATFORMS=cpu: on the CPU). Takes about a minute; exit status 0 if it works.

set -euo pipefail
CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.."
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
"${PYTHON:-python}" -m gpt1_jax.main --config=configs/benchmark.py:pretrain --config.size=tiny --config.minutes=0.1 \
  --workdir="$scratch"
