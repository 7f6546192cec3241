#!/usr/bin/env bash
# Builds the image of launch/Dockerfile, runs some steps in it, and pushes it:
#
#   bash launch/image.sh cpu|cuda|tpu NAME:TAG [--push] [--root] [--dry-run]
#
# The steps run on the CPU of this machine, so that it needs no accelerator. With --root the image runs as root.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
usage='Use bash launch/image.sh cpu|cuda|tpu NAME:TAG [--push] [--root] [--dry-run].'

push='' dry_run='' user=gpt1 words=()
for word in "$@"; do
  case "$word" in
    --push) push=1 ;;
    --root) user=root ;;
    --dry-run) dry_run=1 ;;
    -*) fail "$word: There is no such flag. $usage" ;;
    *) words+=("$word") ;;
  esac
done
[ "${#words[@]}" = 2 ] || fail "image.sh: An accelerator and a name are needed. $usage"
accelerator=${words[0]} image=${words[1]}
case "$accelerator" in
  cpu | cuda | tpu) ;;
  *) fail "$accelerator: It is not an accelerator. $usage" ;;
esac
[[ $image =~ :[A-Za-z0-9_.-]+$ ]] || fail "$image: It has no tag. Give one, such as $image:$(date +%Y%m%d)."
[ -n "$dry_run" ] || command -v docker >/dev/null ||
  fail 'docker: It is not installed. Install Docker (docs.docker.com), or use --dry-run.'
cd "$(dirname "${BASH_SOURCE[0]}")/.."
commit=$(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)

execute docker build --platform=linux/amd64 --file=launch/Dockerfile --build-arg=ACCELERATOR="$accelerator" \
  --build-arg=COMMIT="$commit" --build-arg=RUN_AS="$user" --tag="$image" .
execute docker run --rm --platform=linux/amd64 --env=JAX_PLATFORMS=cpu --entrypoint=bash "$image" launch/health.sh ||
  fail "$image: It was built, but steps of a tiny model fail in it (see above). Nothing is pushed."
if [ -n "$push" ]; then
  execute docker push "$image"
fi
