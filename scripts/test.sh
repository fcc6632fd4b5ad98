#!/usr/bin/env bash
# All checks and tests: check.sh, the tests against the emulator, those of the client for Python, and that
# docs/compatibility.md names only tests that exist.
#
# Needs a Rust toolchain, Node.js 20 or later with npm, and Python 3.10 or later with venv. Without an emulator
# or a Python the tests fail; they are never skipped. The last line counts the tests; the exit code is 0 only
# when everything passed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
export TASKHUB_LOGS=${TASKHUB_LOGS:-${CARGO_TARGET_DIR:-target}/test-logs}
mkdir -p "$TASKHUB_LOGS"
: >"$TASKHUB_LOGS/offline.log"
: >"$TASKHUB_LOGS/azurite.log"
: >"$TASKHUB_LOGS/python.log"

failed=
scripts/check.sh || failed="$failed check"

echo '== azurite'
azurite() {
  # Built first, so that the emulator does not wait for the compiler. The tests mostly wait.
  cargo test --locked -p azurite-tests --no-run &&
    cargo build --locked -p taskhub-cli -p azurite-tests --bin taskhub &&
    RUST_TEST_THREADS=8 scripts/azurite.sh run -- cargo test --locked -p azurite-tests --no-fail-fast
}
azurite 2>&1 | tee "$TASKHUB_LOGS/azurite.log" || failed="$failed azurite"

echo '== python'
scripts/test-python.sh || failed="$failed python"

echo '== traceability'
scripts/traceability.sh "$TASKHUB_LOGS"/{offline,azurite}.log || failed="$failed traceability"

[ -z "$failed" ] || echo "test.sh: failed:$failed"
scripts/summary.sh "$TASKHUB_LOGS"/{offline,azurite,python}.log || failed="$failed tests"
[ -z "$failed" ]
