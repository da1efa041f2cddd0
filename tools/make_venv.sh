#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Make a virtual environment with Python 3.12 and exactly what requirements.lock names.
# usage: tools/make_venv.sh FOLDER      (`make venv` calls it when the lock has changed)
set -euo pipefail

readonly folder=${1:?usage: tools/make_venv.sh FOLDER}

# A shim may be on PATH and still refuse to run, and a Python may lack parts: try each one.
works() {
    "$1" -c 'import sys, ctypes, ensurepip, sqlite3, ssl, venv; sys.exit(sys.version_info[:2] != (3, 12))' \
        >/dev/null 2>&1
}

candidates() {
    command -v python3.12 || true
    if command -v pyenv >/dev/null; then
        printf '%s\n' "$(pyenv root)"/versions/3.12.*/bin/python3.12 | sort --version-sort --reverse
    fi
    if command -v uv >/dev/null; then
        uv python find --no-project 3.12 2>/dev/null || true
    fi
    command -v python3 || true
}

find_python() {
    local candidate
    while read -r candidate; do
        if works "$candidate"; then
            echo "$candidate"
            return
        fi
    done < <(candidates)
    cat >&2 <<'TEXT'
error: no working Python 3.12 (with venv, ssl and sqlite3) was found. Get one with either of
    pyenv install 3.12
    uv python install 3.12
and run the same command again.
TEXT
    return 1
}

# One line a package instead of pip's three; errors go to standard error as they are.
show_progress() {
    local verb name rest count=0
    while read -r verb name rest; do
        case $verb in
            Collecting | Processing)
                count=$((count + 1))
                name=${name##*/}
                printf '  %3d/%d  %s\n' "$count" "$1" "${name/==/ }"
                ;;
            Installing) echo "  installing" ;;
        esac
    done
}

python=$(find_python)
total=$(grep --count '^[a-z0-9].*==' requirements.lock)
echo "$folder: $("$python" --version) from $python"
# A folder whose Python has gone or is another one is made anew; else what fits is kept.
if ! works "$folder/bin/python"; then
    "$python" -m venv --clear "$folder"
fi
echo "$folder: $total packages of requirements.lock; the first time about 5 GB, some minutes"
PYTHONUNBUFFERED=1 "$folder/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off \
    --no-deps --require-hashes --requirement requirements.lock | show_progress "$total"
PYTHONWARNINGS=ignore "$folder/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps --no-index \
    --no-build-isolation --editable .
echo "$folder: ready"
