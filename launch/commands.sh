# shellcheck shell=bash
# Sourced by the scripts here that call other programs: how they print commands, and how they fail.

fail() {
  echo "$1" >&2
  exit 2
}

show() { # prints a command such that it can be copied
  local word line=+
  for word in "$@"; do
    case "$word" in
      *\'* | '') line+=" $(printf %q "$word")" ;;
      *[!A-Za-z0-9_./:=@%+,-]*) line+=" '$word'" ;;
      *) line+=" $word" ;;
    esac
  done
  echo "$line" >&2
}

execute() { # prints it and, unless $dry_run is set, runs it
  show "$@"
  [ -n "${dry_run:-}" ] || "$@"
}
