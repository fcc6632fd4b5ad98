#!/usr/bin/env bash
# Proves that docs/operations.md explains every warning and error that a worker can log: each text of
# warn!() and error!() in the crates named below stands in backticks in its section "What the log says".
#
#   warnings.sh            fails and lists what is missing, and what is there for nothing
#   warnings.sh --list     the texts, with the file each is in
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
crates=(azure-storage worker storage http taskhub)
doc=docs/operations.md

# The last text of a macro call is its message; `message` fields and format arguments are not used here.
texts() {
  find "${crates[@]/#/crates/}" -path '*/src/*' -name '*.rs' -print0 | sort -z | xargs -0 awk '
    FNR == 1 { inside = 0; tests = 0 }
    /^#\[cfg\(test\)\]/ { tests = 1 }
    tests { next }
    /(^|[^a-z_])(tracing::)?(warn|error)!\(/ && !/^ *\/\// { inside = 1; call = "" }
    inside {
      line = $0
      if (inside == 1) { sub(/.*(warn|error)!\(/, "", line); inside = 2; depth = 1; quoted = 0; last = "" }
      else if (quoted) sub(/^ +/, "", line) # a text that goes on after a backslash
      for (i = 1; i <= length(line) && depth > 0; i++) {
        c = substr(line, i, 1)
        if (quoted && c == "\\") { i++; if (i <= length(line)) last = last c substr(line, i, 1) }
        else if (c == "\"") { quoted = !quoted; if (quoted) last = "" }
        else if (quoted) last = last c
        else if (c == "(") depth++
        else if (c == ")") depth--
      }
      if (depth == 0) {
        if (last == "") { print "warnings.sh: no text in a call. file=" FILENAME " line=" FNR > "/dev/stderr"; bad = 1 }
        else print last "\t" FILENAME
        inside = 0
      }
    }
    END { exit bad }
  '
}

all=$(texts)
if [ "${1:-}" = --list ]; then
  printf '%s\n' "$all"
  exit
fi
section=$(sed -n '/^## What the log says/,/^## /p' "$doc")
missing=
while IFS=$'\t' read -r text file; do
  grep -qF -- "\`$text\`" <<<"$section" || missing="$missing  $text   ($file)"$'\n'
done <<<"$all"
if [ -n "$missing" ]; then
  printf '%s\n%s' "$doc does not explain what a worker can log:" "$missing" >&2
  exit 1
fi
# What the tables name and nobody logs any more.
gone=$(grep '^| [WE]' <<<"$section" | cut -d'|' -f2 | grep -oE '[WE] `[^`]+`' | sed -E 's/^. `(.*)`$/\1/' | sort -u |
  comm -23 - <(cut -f1 <<<"$all" | sort -u))
if [ -n "$gone" ]; then
  printf '%s explains what nobody logs:\n%s\n' "$doc" "$gone" >&2
  exit 1
fi
echo "warnings.sh: $(sort -u <<<"$all" | wc -l | tr -d ' ') texts explained in $doc"
