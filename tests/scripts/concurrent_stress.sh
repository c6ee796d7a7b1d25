#!/usr/bin/env bash
# QA-REL-001, test 2: many at a time. Options are those of `leakcheck stress`: --duration SECONDS, --concurrency C (100 if
# it is not given), --target T …
set -euo pipefail
. "$(dirname "$0")/common.sh"
exec leakcheck stress --concurrency 100 "$@"
