#!/usr/bin/env bash
# Checks the image files without Docker: everything they copy is there, and what they build can be built
# from what they copy.
#
#   images.sh            reads the manifests of what is copied, as cargo does
#   images.sh --build    runs their cargo lines there, as they are (release builds: minutes)
#
# Not checked: the base images and the finished image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=
case ${1:-} in
  '') ;;
  --build) build=1 ;;
  *) sed -n '2,9p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//' >&2; exit 2 ;;
esac
die() { echo "images.sh: $*" >&2; exit 1; }

host=$(rustc -vV | sed -n 's/^host: //p')
stage=
trap '[ -z "$stage" ] || rm -rf "$stage"' EXIT

check() { # DOCKERFILE
  local file=$1 words word cargo program
  [ -f "$file.dockerignore" ] || die "$file has no $file.dockerignore: the context would hold target/"
  stage=$(mktemp -d "${TMPDIR:-/tmp}/taskhub-image.XXXXXX")
  # COPY SOURCE... DESTINATION, from the repository.
  while read -r -a words; do
    for word in "${words[@]:1:${#words[@]}-2}"; do
      git ls-files --error-unmatch "$word" >/dev/null 2>&1 || die "$file copies what is not in the repository: $word"
      git ls-files -z -- "$word" | tar --null -T - -c | tar -x -C "$stage"
    done
  done < <(grep '^COPY ' "$file" | grep -v -- '--from=')
  cargo=$(grep -oE 'cargo build [^&\\]*' "$file") || die "$file builds nothing"
  # The program is copied from where cargo puts it, and started by the entry point and the health check.
  program=$(sed -E 's/.*--bin ([a-z-]+).*/\1/' <<<"$cargo")
  profile=$(sed -nE 's/.*--profile ([a-z]+).*/\1/p' <<<"$cargo")
  for word in "cp target/${profile:-release}/$program /$program" "ENTRYPOINT [\"/usr/local/bin/$program\"]" \
    "CMD [\"/usr/local/bin/$program\", \"healthcheck\"]" 'STOPSIGNAL SIGTERM' ':nonroot'; do
    grep -qF -- "$word" "$file" || die "$file lacks: $word"
  done
  # Workspace members that are not copied, and a lock file that does not fit, are errors here.
  cargo metadata --locked --offline --filter-platform "$host" --format-version 1 \
    --manifest-path "$stage/Cargo.toml" >"$stage/metadata.json"
  grep -q "\"name\":\"$program\"" "$stage/metadata.json" || die "$file builds an unknown program: $program"
  if [ -n "$build" ]; then
    (cd "$stage" && CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$OLDPWD/target} $cargo)
  fi
  rm -rf "$stage"
  stage=
  echo "images.sh: $file: $cargo"
}

for file in scripts/docker/Dockerfile examples/my-worker/Dockerfile; do check "$file"; done

# The example for Kubernetes asks the paths that there are, at the port that the image listens at.
yaml=examples/my-worker/kubernetes.yaml
port=$(sed -nE 's/^ENV TASKHUB_HEALTH_LISTEN=.*:([0-9]+)$/\1/p' examples/my-worker/Dockerfile)
grep -q "containerPort: $port " "$yaml" || die "$yaml does not name the port of the image: $port"
for path in $(grep -oE 'path: /[a-z]+' "$yaml" | cut -d' ' -f2); do
  grep -q "\"$path\"" crates/http/src/health.rs || die "$yaml asks a path that is not answered: $path"
done
