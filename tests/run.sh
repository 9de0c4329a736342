#!/usr/bin/env bash
# bash tests/run.sh                 everything: format, lint, types, import contract, unit and integration tests
# bash tests/run.sh ARGUMENTS...    only pytest, with these arguments: bash tests/run.sh tests/unit -k verdict
# bash tests/run.sh tests/whole     what takes too long for every time: trainings and services killed, pairwise judges
# bash tests/run.sh tests/gpu_shape everything about GPUs that a CPU can prove; without arguments its quick part is run
# Sets up the environment if needed. Stops at the first part that fails.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Tests start their own Ray; they must never run on a cluster that the user happens to be connected to.
unset RAY_ADDRESS
# Hundreds of processes import this package; images of containers often forbid Python to keep what it compiled.
unset PYTHONDONTWRITEBYTECODE

part() { # title, command...
    local title=$1 begin=$SECONDS status=0
    shift
    printf '\n== %s: %s\n' "$title" "$*"
    "$@" || status=$?
    if ((status)); then
        printf '\n== FAILED: %s, after %d s (status %d)\n' "$title" $((SECONDS - begin)) "$status"
        exit 1
    fi
    printf '== %s: %d s\n' "$title" $((SECONDS - begin))
}

part "set-up" bash cluster/setup.sh
# shellcheck disable=SC1091
source "${VLGENRM_VENV:-.venv}/bin/activate"
if (($#)); then
    part "tests" python -m pytest "$@"
    exit
fi
part "format" ruff format --check .
part "lint" ruff check .
part "types" mypy
part "import contract" lint-imports
part "unit tests" python -m pytest tests/unit --numprocesses auto
part "what GPUs need, the quick part" python -m pytest tests/gpu_shape -m "not slow" --numprocesses auto
# Two at a time: most wait, for engines to start or for one thread of Python.
part "integration tests" python -m pytest tests/integration --numprocesses 2 --dist loadgroup --no-loadscope-reorder --durations=15
printf '\n== all passed: %d s\n' "$SECONDS"
