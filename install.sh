#!/usr/bin/env bash
# Makes .venv with the package, its commands and the tools; quick when nothing changed.
set -euo pipefail
cd "$(dirname "$0")"
say() { printf '%s\n' "$*" >&2; }
python=${PYTHON:-}
for candidate in python3.13 python3.12 python3.11 python3; do
  [ -n "$python" ] && break
  command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && python=$candidate
done
[ -n "$python" ] || { say "Python 3.11 or newer is missing: install python3 (Debian 12, Ubuntu 24.04 or newer have it), or set PYTHON to it."; exit 1; }
stamp=.venv/.installed
wanted=$(cat pyproject.toml requirements-dev.txt requirements-uv.txt install.sh | sha256sum | cut -c1-64)" $("$python" -V 2>&1) $PWD"
[ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && exit 0
if ! "$python" -c 'import ensurepip' 2>/dev/null; then
  [ "$(id -u)" = 0 ] || { say "Python's venv module is missing: run 'apt-get install python3-venv' as root."; exit 1; }
  say "installing python3-venv (Debian package)"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
fi
say "making .venv"
rm -rf .venv
"$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt
VIRTUAL_ENV=$PWD/.venv .venv/bin/uv pip install --quiet --require-hashes -r requirements-dev.txt
VIRTUAL_ENV=$PWD/.venv .venv/bin/uv pip install --quiet --no-deps -e .
printf '%s' "$wanted" > "$stamp"
