# Sourced by the scripts beside it: finds leakcheck, that of the checkout first.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PATH=$root/.venv/bin:$PATH:/usr/sbin:/sbin
if ! command -v leakcheck >/dev/null; then
  echo "$(basename "$0"): leakcheck is not installed: run 'make setup' in $root, or 'pip install leakcheck'" >&2
  exit 4
fi
