#!/usr/bin/env bash
# Proves that every test that docs/compatibility.md names exists and ran.
#
#   traceability.sh [--all] LOG...     logs of `cargo test` without --quiet
#
# A test is named in backticks as PROGRAM::PATH, all in lower case: `taskhub_core::ids::tests::name` for
# a test in a crate, `golden_takeover::name` for one in a file of tests/. A test that is ignored (the
# nightly ones) counts as present; with --all it must have run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
doc=docs/compatibility.md

want='ok|ignored.*'
if [ "${1:-}" = --all ]; then
  want=ok
  shift
fi
[ $# -gt 0 ] || { sed -n '2,9p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//' >&2; exit 2; }

named=$(grep -oE '`[a-z0-9_]+(::[a-z0-9_]+)+`' "$doc" | tr -d '`' | sort -u)
[ -n "$named" ] || { echo "traceability.sh: $doc names no test" >&2; exit 1; }
present=$(awk -v want="^($want)$" '
  # "Running unittests src/lib.rs (target/debug/deps/taskhub_core-0123456789abcdef)"
  /^ +Running / { program = $NF; sub(/.*\//, "", program); sub(/-[0-9a-f]+(\.exe)?\)$/, "", program) }
  /^test .* \.\.\. / {
    at = index($0, " ... ")
    name = substr($0, 6, at - 6); outcome = substr($0, at + 5)
    sub(/ - should panic$/, "", name)
    if (outcome ~ want) print program "::" name
  }
' "$@" | sort -u)

missing=$(comm -23 <(printf '%s\n' "$named") <(printf '%s\n' "$present"))
if [ -n "$missing" ]; then
  echo "$doc names tests that are not there or did not run:" >&2
  sed 's/^/  /' <<<"$missing" >&2
  exit 1
fi
echo "traceability.sh: $(wc -l <<<"$named" | tr -d ' ') tests named in $doc, all there"
