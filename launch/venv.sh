# Sourced by the scripts beside it: goes to the repository root and sees to a .venv there that holds what
# requirements.txt asks for; nothing is installed when that file is as it was the last time. Needs Python 3.11
# or newer, and the network to install. Sets PYTHON to the environment's interpreter.

set -euo pipefail
CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=.venv/bin/python
stamp=.venv/requirements.txt # what was installed; written last, so that a broken install is done again

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

fail() {
  echo "$0: $1" >&2
  exit 2
}

if ! { [ -f "$stamp" ] && [ "$(<"$stamp")" = "$(<requirements.txt)" ] && new_enough "$PYTHON"; }; then
  if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
    base=
    for candidate in python3.12 python3.11 python3; do # a name may be a shim that only fails
      if new_enough "$candidate"; then base=$candidate && break; fi
    done
    [ -n "$base" ] || fail "Python 3.11 or newer is needed, but python3 here is \
$(python3 --version 2>/dev/null || echo missing): install it (Debian, Ubuntu: apt install python3.11-venv)."
    echo "Making .venv with $("$base" --version)."
    "$base" -m venv --clear .venv || fail "$base cannot make an environment: install its venv module \
(Debian, Ubuntu: apt install $("$base" -c 'import sys; print("python3.%d-venv" % sys.version_info[1])'))."
  fi
  new_enough "$PYTHON" || fail "$PWD/.venv holds a Python older than 3.11: remove it and run this again."
  echo 'Installing requirements.txt into .venv (2.5 GB, a few minutes).'
  "$PYTHON" -m pip install --quiet --disable-pip-version-check -r requirements.txt ||
    fail 'requirements.txt could not be installed (see above): fix that and run this again.'
  cp requirements.txt "$stamp"
fi
