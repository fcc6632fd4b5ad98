#!/usr/bin/env bash
# Runs a command against a fresh Azure Storage emulator and stops the emulator afterwards.
#
#   azurite.sh run -- COMMAND [ARGUMENT...]   with $TASKHUB_TEST_CONNECTION set for the command
#   azurite.sh install                        only fetches the packages of azurite-tests (npm ci)
#
# With $TASKHUB_TEST_ACCESS_LOG set to anything the emulator logs every request, and the command finds the name
# of the log there.
#
# The version is pinned in azurite-tests/package.json and its lock file. The emulator listens on
# free ports of 127.0.0.1 and keeps its data in a new directory, in memory where /dev/shm exists.
# The exit code is that of the command; 3 when there is no emulator to run it against.
set -euo pipefail

home=$(cd "$(dirname "${BASH_SOURCE[0]}")/../azurite-tests" && pwd)
entry=$home/node_modules/azurite/dist/src/azurite.js
host=127.0.0.1
account=devstoreaccount1
# The emulator's well-known key, published in its documentation: not a secret.
key='Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=='

die() {
  echo "azurite.sh: $*" >&2
  exit 3
}

usage() {
  sed -n '2,12p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//' >&2
  exit 2
}

# Installs what the lock files say, unless that is what is there: the emulator, and the client of Durable
# Functions that one of the tests runs.
install() {
  command -v node >/dev/null || die 'the tests against the emulator need Node.js 20 or later: node is not installed'
  command -v npm >/dev/null || die 'the tests against the emulator need npm to install it'
  (
    if command -v flock >/dev/null; then flock 9; fi
    for directory in "$home" "$home/durable-functions"; do
      if ! cmp -s "$directory/package-lock.json" "$directory/node_modules/.installed-lock.json"; then
        echo "azurite.sh: installing the packages of $(basename "$directory")" >&2
        (cd "$directory" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2) ||
          die 'npm ci failed'
        cp "$directory/package-lock.json" "$directory/node_modules/.installed-lock.json"
      fi
    done
  ) 9>"${TMPDIR:-/tmp}/taskhub-azurite-$(id -u).lock"
  [ -f "$entry" ] || die "the emulator is not where it should be: $entry"
}

# Three ports that are free right now.
free_ports() {
  node -e '
    const net = require("net");
    const open = () => new Promise((ok, no) => {
      const s = net.createServer().on("error", no).listen(0, process.argv[1], () => ok(s));
    });
    Promise.all([open(), open(), open()]).then((all) => {
      console.log(all.map((s) => s.address().port).join(" "));
      for (const s of all) s.close();
    });' "$host"
}

# Waits until the three services answer; fails when the process ends or does not answer in a minute.
await_answers() { # PID PORT...
  node -e '
    const [pid, ...ports] = process.argv.slice(1);
    const answers = (port) => fetch(`http://'"$host"':${port}/'"$account"'?comp=list`).then(() => true, () => false);
    (async () => {
      for (const end = Date.now() + 60000; Date.now() < end; await new Promise((r) => setTimeout(r, 100))) {
        try { process.kill(Number(pid), 0); } catch { process.exit(1); }
        if ((await Promise.all(ports.map(answers))).every(Boolean)) process.exit(0);
      }
      process.exit(1);
    })();' "$@"
}

emulator=
data=
cleanup() {
  trap - EXIT INT TERM
  stop
  [ -z "$data" ] || rm -rf "$data"
}

stop() {
  [ -n "$emulator" ] || return 0
  # It holds nothing worth saving, and would wait for open keep-alive connections.
  kill -KILL "$emulator" 2>/dev/null || true
  wait "$emulator" 2>/dev/null || true
  emulator=
}

# Starts the emulator; another process may take a port first, so the caller tries more than once.
start() {
  local blob queue table
  read -r blob queue table < <(free_ports)
  local silent=--silent
  [ -z "${TASKHUB_TEST_ACCESS_LOG:-}" ] || silent=
  # shellcheck disable=SC2086
  node "$entry" $silent --skipApiVersionCheck --disableTelemetry --location "$data" \
    --blobHost "$host" --blobPort "$blob" --queueHost "$host" --queuePort "$queue" \
    --tableHost "$host" --tablePort "$table" >"$data/emulator.log" 2>&1 </dev/null &
  emulator=$!
  if await_answers "$emulator" "$blob" "$queue" "$table"; then
    [ -n "$silent" ] || export TASKHUB_TEST_ACCESS_LOG="$data/emulator.log"
    export TASKHUB_TEST_CONNECTION="DefaultEndpointsProtocol=http;AccountName=$account;AccountKey=$key;BlobEndpoint=http://$host:$blob/$account;QueueEndpoint=http://$host:$queue/$account;TableEndpoint=http://$host:$table/$account;"
    return 0
  fi
  stop
  return 1
}

run() {
  install
  trap cleanup EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  if [ -d /dev/shm ] && [ -w /dev/shm ]; then
    data=$(mktemp -d /dev/shm/taskhub-azurite.XXXXXX)
  else
    data=$(mktemp -d "${TMPDIR:-/tmp}/taskhub-azurite.XXXXXX")
  fi
  start || start || start || {
    tail -n 20 "$data/emulator.log" >&2
    die 'the emulator does not start'
  }
  local code=0
  "$@" || code=$?
  if ! kill -0 "$emulator" 2>/dev/null; then
    tail -n 20 "$data/emulator.log" >&2
    die 'the emulator ended while the command ran'
  fi
  exit "$code"
}

case ${1:-} in
  install) install ;;
  run)
    shift
    [ "${1:-}" != -- ] || shift
    [ $# -gt 0 ] || usage
    run "$@"
    ;;
  *) usage ;;
esac
