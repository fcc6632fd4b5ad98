#!/usr/bin/env bash
# The released Durable Functions client for Python against `taskhub serve` on the emulator.
#
# Needs a Rust toolchain, Node.js 20 or later with npm, and Python 3.10 or later with venv. What
# azurite-tests/python/requirements.txt pins is installed into target/python-client. The test log is kept in
# $TASKHUB_LOGS (target/test-logs) as python.log; the last line counts the tests.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
target=${CARGO_TARGET_DIR:-target}
logs=${TASKHUB_LOGS:-$target/test-logs}
requirements=azurite-tests/python/requirements.txt
home=$target/python-client
mkdir -p "$logs"
: >"$logs/python.log"

die() {
  echo "test-python.sh: $*" >&2
  exit 1
}

find_python() {
  local name
  for name in python3.11 python3.12 python3.13 python3.10 python3; do
    # A name may be there without what it stands for (pyenv).
    if "$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
      echo "$name"
      return 0
    fi
  done
  return 1
}

if ! cmp -s "$requirements" "$home/installed.txt"; then
  python=$(find_python) || die 'Python 3.10 or later with venv is needed'
  echo "test-python.sh: installing the client with $("$python" --version)" >&2
  rm -rf "$home"
  "$python" -m venv "$home" &&
    "$home/bin/pip" install --quiet --disable-pip-version-check --no-input --require-hashes \
      --only-binary :all: -r "$requirements" >&2 || die 'the client cannot be installed'
  cp "$requirements" "$home/installed.txt"
fi

TASKHUB_TEST_PYTHON=$(cd "$home" && pwd)/bin/python
export TASKHUB_TEST_PYTHON
python_client() {
  cargo test --locked -p azurite-tests --features python --test python_client --no-run &&
    scripts/azurite.sh run -- cargo test --locked -p azurite-tests --features python --test python_client
}
python_client 2>&1 | tee "$logs/python.log"
scripts/summary.sh "$logs/python.log"
