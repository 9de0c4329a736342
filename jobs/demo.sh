#!/usr/bin/env bash
# bash jobs/demo.sh [options of `vlgenrm demo`]
# Sets up the environment if needed, then shows a reward model getting better.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/cluster/setup.sh"
exec "${VLGENRM_VENV:-$root/.venv}/bin/vlgenrm" demo "$@"
