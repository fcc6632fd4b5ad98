#!/usr/bin/env bash
# Everything that needs only a Rust toolchain: format, dependency direction, image files, the table of
# warnings, lints, documentation, offline tests.
#
#   check.sh [STEP...]     all steps, or some of: fmt direction images warnings clippy doc test
#
# A failing step does not hide the later ones; the exit code is 1 when any failed. The test log is
# kept in $TASKHUB_LOGS (target/test-logs) as offline.log.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
logs=${TASKHUB_LOGS:-${CARGO_TARGET_DIR:-target}/test-logs}

fmt() { cargo fmt --all --check; }
clippy() { cargo clippy --locked --workspace --all-targets -- -D warnings; }
doc() { RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --quiet; }

offline_tests() {
  mkdir -p "$logs"
  cargo test --locked --no-fail-fast 2>&1 | tee "$logs/offline.log"
}

# No package of PATTERN among what PACKAGE is built from (dev-dependencies do not count).
never() { # PACKAGE PATTERN [OPTION...]
  local found
  if ! found=$(cargo tree --locked -p "$1" "${@:3}" -e normal,build --prefix none --format '{p}'); then return 1; fi
  found=$(awk '{print $1}' <<<"$found" | sort -u | grep -Ex "$2" | tr '\n' ' ')
  [ -z "$found" ] && return 0
  echo "$1 must not depend on: $found" >&2
  return 1
}

# The arrows of docs/ARCHITECTURE.md, as far as cargo knows them.
direction() {
  local ok=0 above='taskhub(-(azure-storage|client|worker|cli|http|sidecar|testkit))?|azurite-tests'
  # The vocabulary: no I/O, no runtime, no wire format.
  never taskhub-core 'tokio.*|reqwest|azure_.*|serde|serde_derive|serde_json|taskhub-(storage|replay).*|'"$above" || ok=1
  # Replay is pure.
  never taskhub-replay 'tokio.*|reqwest|azure_.*|taskhub-storage|'"$above" || ok=1
  # So are entities: bytes in, bytes out.
  never taskhub-entities 'tokio.*|reqwest|azure_.*|taskhub-(storage|replay)|'"$above" || ok=1
  # Storage knows nothing of task hubs, the layout nothing of what runs on it.
  never taskhub-storage "taskhub-replay|$above" || ok=1
  never taskhub-azure-storage 'taskhub(-(replay|client|worker|cli|http|sidecar|testkit))?|azurite-tests' || ok=1
  # Workers and clients see a backend only through the traits of core.
  never taskhub-worker 'reqwest|azure_.*|taskhub(-(storage|azure-storage|client|cli|http|sidecar|testkit))?' || ok=1
  never taskhub-client 'reqwest|azure_.*|taskhub(-(storage|azure-storage|worker|cli|http|sidecar|testkit))?' || ok=1
  # Endpoints are told what to tell.
  never taskhub-http 'reqwest|azure_.*|taskhub(-(storage|azure-storage|cli|sidecar|testkit))?' || ok=1
  # Test support stays out of programs.
  never taskhub 'taskhub-(cli|testkit)|azurite-tests|proptest|clap' || ok=1
  never taskhub-cli 'taskhub-testkit|azurite-tests|proptest' || ok=1
  # Planted faults are for the test kit alone.
  if cargo tree --locked -p taskhub-cli -e normal,features -i taskhub-azure-storage | grep -q '"simulation"'; then
    echo 'taskhub-cli must not have the feature simulation of taskhub-azure-storage' >&2
    ok=1
  fi
  # One TLS stack, with every feature.
  never taskhub-cli 'openssl.*|native-tls' --all-features || ok=1
  return "$ok"
}

failed=
step() { # NAME COMMAND...
  local name=$1
  shift
  echo "== $name"
  "$@" || failed="$failed $name"
}
for name in ${*:-fmt direction images warnings clippy doc test}; do
  case $name in
    test) step test offline_tests ;;
    images) step images scripts/images.sh ;;
    warnings) step warnings scripts/warnings.sh ;;
    fmt | clippy | doc | direction) step "$name" "$name" ;;
    *)
      sed -n '2,8p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//' >&2
      exit 2
      ;;
  esac
done
if [ -n "$failed" ]; then
  echo "check.sh: failed:$failed" >&2
  exit 1
fi
echo 'check.sh: all steps passed'
