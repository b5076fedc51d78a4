#!/usr/bin/env bash
# The tests of the engine on a core that checks itself as it runs: memory and undefined behaviour, or races.
#
#   tools/sanitize.sh address|thread [FOLDER OF THE ENVIRONMENT] [PYTEST ARGUMENTS]
#
# Needs gcc or clang with its sanitizers. BITBRANCH_MOST_EXAMPLES caps the examples of each property.
set -euo pipefail
cd "$(dirname "$0")/.."

kind=$1 python=${2:-.venv}/bin/python build=build/sanitize-$1
shift $(($# > 1 ? 2 : 1))
case $kind in
  address) library=libasan.so ;;
  thread) library=libtsan.so ;;
  *) echo "no sanitizer $kind: address or thread" >&2; exit 2 ;;
esac

PATH=$(dirname "$python"):$PATH
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Debug -DBITBRANCH_SANITIZE="$kind" -DPython_EXECUTABLE="$python" \
  -Dnanobind_DIR="$("$python" -m nanobind --cmake_dir)" > "$build.log" 2>&1 || { cat "$build.log"; exit 1; }
cmake --build "$build"

export BITBRANCH_TEST_CORE=$(echo "$PWD/$build"/_core*.so)
export BITBRANCH_MOST_EXAMPLES=${BITBRANCH_MOST_EXAMPLES:-25}
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PYTHONMALLOC=malloc
export ASAN_OPTIONS=detect_leaks=0:strict_string_checks=1:detect_stack_use_after_return=1
export UBSAN_OPTIONS=print_stacktrace=1
# Python, NumPy and torch are not instrumented: what they do to memory is not seen, only their locks.
export TSAN_OPTIONS=ignore_noninstrumented_modules=1:die_after_fork=0:halt_on_error=1:exitcode=66
preload=$("${CXX:-c++}" -print-file-name=$library)
[ "$kind" = thread ] || preload="$preload $("${CXX:-c++}" -print-file-name=libstdc++.so)"
LD_PRELOAD=$preload exec "$python" -m pytest -p no:cacheprovider "$@"
