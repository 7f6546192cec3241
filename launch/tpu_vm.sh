#!/usr/bin/env bash
# Runs one config on every worker of an existing TPU VM or pod slice; creates and deletes none.
#
#   NAME=slice ZONE=us-central2-b PROJECT=project WORKDIR=gs://bucket/runs/pretrain \
#     bash launch/tpu_vm.sh configs/pretrain.py --config.data.source=shards:gs://bucket/books
#
# After a preemption, the same command resumes from the last checkpoint in WORKDIR. To create and delete a slice:
#   gcloud compute tpus tpu-vm create NAME --zone=ZONE --project=PROJECT --accelerator-type=v4-32 \
#     --version=tpu-ubuntu2204-base
#   gcloud compute tpus tpu-vm delete NAME --zone=ZONE --project=PROJECT
# Every worker runs the same program; --distributed makes them one. Not yet tried on hardware.

set -euo pipefail
usage='Usage: NAME=... ZONE=... PROJECT=... WORKDIR=gs://... bash launch/tpu_vm.sh configs/FILE.py [flags]'
for variable in NAME ZONE PROJECT WORKDIR; do
  [ -n "${!variable:-}" ] || { echo "$variable: It is not set. $usage" >&2 && exit 2; }
done
case "$WORKDIR" in
  gs://*) ;;
  *) echo "WORKDIR: It is $WORKDIR, but the workers share no disk. Give a gs:// path." >&2 && exit 2 ;;
esac
[ $# -gt 0 ] || { echo "$0: No config is given. $usage" >&2 && exit 2; }
command -v gcloud >/dev/null || { echo "gcloud: It is not installed. Install the Google Cloud CLI." >&2 && exit 2; }

cd "$(dirname "${BASH_SOURCE[0]}")/.."
where=(--zone="$ZONE" --project="$PROJECT" --worker=all)
on_all_workers() { gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --command="$1"; }

archive=$(mktemp -d)/gpt1_jax.tar.gz
trap 'rm -r "$(dirname "$archive")"' EXIT
tar -czf "$archive" --exclude=./.git --exclude=./.venv --exclude=./runs .
gcloud compute tpus tpu-vm scp "$archive" "$NAME":gpt1_jax.tar.gz "${where[@]}"

# The Python of the usual TPU image is 3.10.
on_all_workers 'set -e
mkdir -p gpt1_jax && tar -xzf gpt1_jax.tar.gz -C gpt1_jax
command -v python3.12 python3.11 >/dev/null ||
  { sudo apt-get update -qq && sudo apt-get install -y -qq python3.11 python3.11-venv; }
EXTRA=tpu source gpt1_jax/launch/venv.sh'

config=$1
shift
on_all_workers "cd gpt1_jax && .venv/bin/python -m gpt1_jax.main $(printf '%q ' \
  --distributed --config="$config" --workdir="$WORKDIR" "$@")"
