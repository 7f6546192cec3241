# shellcheck shell=bash
# Sourced by the other scripts here: changes to the repository root and makes a .venv there with the packages of
# requirements.txt or, with EXTRA=NAME, with this package and that extra of pyproject.toml. Installs nothing if these
# are unchanged. Needs Python 3.11 to 3.13, and a network to install. Sets PYTHON to the interpreter of the environment.

set -euo pipefail
CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=.venv/bin/python
UV=0.13.9
stamp=.venv/requirements.txt # what was installed; written last, so that a failed install is repeated
wanted=(-r requirements.txt)
[ -z "${EXTRA:-}" ] || wanted=(-e ".[$EXTRA]")

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; }

contents() { cat requirements.txt ${EXTRA:+pyproject.toml} && echo "${EXTRA:+# EXTRA=$EXTRA}"; }

fail() {
  echo "$0: $1" >&2
  exit 2
}

# uv takes a third of pip's time, but does not read pip's settings. So pip installs if they name an index, or if uv has
# failed. Compiling every module takes half of pip's time, so it is left to Python, which compiles what it imports, unless
# Python may not keep the result.
install_packages() {
  local pip=("$PYTHON" -m pip install --quiet --disable-pip-version-check)
  local uv=("$PYTHON" -m uv pip install --quiet --python "$PYTHON") compile=--no-compile
  if [ -n "${PYTHONDONTWRITEBYTECODE:-}" ]; then compile=--compile && uv+=(--compile-bytecode); fi
  # Not grep -q, which closes the pipe at the first match: pip fails then, and with it the pipeline.
  if ! "$PYTHON" -m pip config list | grep -E '[.](index-url|no-index)=' >/dev/null && "${pip[@]}" "uv==$UV"; then
    "${uv[@]}" "${wanted[@]}" && return
    echo 'uv could not install them; pip tries.' >&2
  fi
  "${pip[@]}" "$compile" "${wanted[@]}"
}

if ! { [ -f "$stamp" ] && [ "$(<"$stamp")" = "$(contents)" ] && fits "$PYTHON"; }; then
  if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
    base=
    for candidate in python3.12 python3.11 python3.13 python3; do # a name may be a shim that always fails
      if fits "$candidate"; then base=$candidate && break; fi
    done
    [ -n "$base" ] || fail "Python 3.11 to 3.13 is needed, but python3 here is \
$(python3 --version 2>/dev/null || echo missing). Install it (Debian, Ubuntu: apt install python3.11-venv)."
    echo "Making .venv with $("$base" --version)."
    "$base" -m venv --clear .venv || fail "The environment cannot be made with $base. Install its venv module \
(Debian, Ubuntu: apt install $("$base" -c 'import sys; print("python3.%d-venv" % sys.version_info[1])'))."
  fi
  fits "$PYTHON" || fail "$PWD/.venv has a Python other than 3.11 to 3.13. Delete it and run this again."
  echo "Installing ${wanted[1]} into .venv (2.5 GB, a minute or two)."
  install_packages || fail "The packages of ${wanted[1]} could not be installed (see above). Fix that and run this again."
  contents >"$stamp"
  echo 'To run other commands in this environment: source .venv/bin/activate'
fi
