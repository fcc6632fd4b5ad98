#!/usr/bin/env bash
# What takes too long for every change: test.sh's tests with the ignored ones (every captured phase on
# the emulator) and twenty times the usual number of random cases; the feature `entra`; what
# the images build.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
export TASKHUB_LOGS=${TASKHUB_LOGS:-${CARGO_TARGET_DIR:-target}/test-logs}
export PROPTEST_CASES=${PROPTEST_CASES:-5120}
mkdir -p "$TASKHUB_LOGS"
: >"$TASKHUB_LOGS/offline.log"
: >"$TASKHUB_LOGS/azurite.log"

failed=
echo '== offline'
cargo test --locked --no-fail-fast -- --include-ignored 2>&1 | tee "$TASKHUB_LOGS/offline.log" || failed="$failed offline"

# Ten thousand seeds, and every planted fault searched for; see docs/testing.md.
echo '== simulation'
TASKHUB_SIM_SEEDS=${TASKHUB_SIM_SEEDS:-10000} TASKHUB_SIM_ENTITY_SEEDS=${TASKHUB_SIM_ENTITY_SEEDS:-2000} \
  TASKHUB_SIM_REPEATED=100 cargo test --locked --release \
  -p taskhub-testkit --test simulation -- --include-ignored --nocapture || failed="$failed simulation"

# The optional feature: a second build of half the workspace. Its tests stay on this machine.
echo '== entra'
cargo test --locked --no-fail-fast -p taskhub-storage -p taskhub-cli -p taskhub --features entra || failed="$failed entra"

# What the images build, from what they copy.
echo '== images'
scripts/images.sh --build || failed="$failed images"

echo '== azurite'
azurite() {
  cargo test --locked -p azurite-tests --no-run &&
    cargo build --locked -p taskhub-cli -p azurite-tests --bin taskhub &&
    RUST_TEST_THREADS=8 scripts/azurite.sh run -- cargo test --locked -p azurite-tests --no-fail-fast -- --include-ignored
}
azurite 2>&1 | tee "$TASKHUB_LOGS/azurite.log" || failed="$failed azurite"

echo '== traceability'
scripts/traceability.sh --all "$TASKHUB_LOGS"/{offline,azurite}.log || failed="$failed traceability"

[ -z "$failed" ] || echo "nightly.sh: failed:$failed"
scripts/summary.sh "$TASKHUB_LOGS"/{offline,azurite}.log || failed="$failed tests"
[ -z "$failed" ]
