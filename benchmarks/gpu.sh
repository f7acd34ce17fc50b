#!/usr/bin/env bash
# Everything that wants a GPU, in one run of at most ten minutes. A step that fails or runs out of its time is named at the end; the others go on.
#
#   benchmarks/gpu.sh [OUT]      results go to the folder OUT (default: runs/gpu)
#
# PYTHON: interpreter with the pack's requirements (default: python). PUBLISHED: a clone of microsoft/i-Code, to compare with the published code.
set -u
cd "$(dirname "$0")/.."
out=${1:-runs/gpu} python=${PYTHON:-python} failed=()
mkdir -p "$out"
export PYTHONUNBUFFERED=1

step() {  # name, seconds, command ...
    local name=$1 seconds=$2 begin=$SECONDS
    shift 2
    echo "== $name"
    timeout "$seconds" "$@" 2>&1 | tee "$out/$name.txt"
    local code=${PIPESTATUS[0]}
    [ "$code" = 0 ] || failed+=("$name (exit $code)")
    echo "-- $name: $((SECONDS - begin)) s"
}

step agreement 60 "$python" benchmarks/gpu.py agreement
step step 80 "$python" benchmarks/gpu.py step
step eight_gigabytes 50 "$python" benchmarks/gpu.py step --gigabytes 8
[ -z "${PUBLISHED:-}" ] || step published 100 "$python" benchmarks/against_published.py --published "$PUBLISHED" --device cuda --only unets,joint --outputs image,video+audio
step half 50 "$python" benchmarks/half_precision.py --config mini --device cuda
step generate 30 "$python" benchmarks/generate_time.py --device cuda
# Goes on where it was: give OUT again. What is trained is resumed from OUT/codi-mini-runs.
step training 220 "$python" -m codi_models train --recipe recipes/codi-mini.json --out "$out/codi-mini" --pause-after 3 --samples 0

if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
