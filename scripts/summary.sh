#!/usr/bin/env bash
# Counts the tests in logs of `cargo test` and names the failed ones.
#
#   summary.sh LOG...     the last line is "test summary: N passed, N failed, N ignored (...)"
#
# Exit code 1 when a test failed, when a test program ended without a result (it crashed or did not
# build), or when a log has no test at all.
set -euo pipefail

awk '
  FNR == 1 { logs[++files] = FILENAME }
  # A crash leaves a program announced and no result after it.
  /^ +Running / || /^ +Doc-tests / { if (open != "") broken[++ends] = open; open = $0 }
  /^test result: / {
    passed[FILENAME] += $4; failed[FILENAME] += $6; ignored[FILENAME] += $8; open = ""
  }
  /^test .* \.\.\. FAILED$/ { name = $0; sub(/^test /, "", name); sub(/ \.\.\. FAILED$/, "", name); names[++bad] = name }
  /^error: could not (compile|execute)/ { broken[++ends] = $0 }
  END {
    if (open != "") broken[++ends] = open
    for (i = 1; i <= bad; i++) print "failed: " names[i]
    for (i = 1; i <= ends; i++) { sub(/^ +/, "", broken[i]); print "no result: " broken[i] }
    for (i = 1; i <= files; i++) {
      f = logs[i]; short = f; sub(/.*\//, "", short); sub(/\.log$/, "", short)
      p += passed[f]; n += failed[f]; g += ignored[f]
      parts = parts (i > 1 ? ", " : "") short " " (passed[f] + 0) " passed"
      if (passed[f] + failed[f] == 0) { print "no tests: " f; ends++ }
    }
    if (files < ARGC - 1) { print "no tests: an empty log"; ends++ }
    printf "test summary: %d passed, %d failed, %d ignored (%s)\n", p, n, g, parts
    exit (n > 0 || ends > 0 || files == 0)
  }
' "$@"
