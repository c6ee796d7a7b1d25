"""One sweep on many machines: its shards run on the workers of a Dask cluster (extra ``cluster``)."""

from leakcheck.errors import UsageError

try:
    from leakcheck.cluster.sweep import run_on_cluster
except ImportError as error:
    if (error.name or "").partition(".")[0] not in ("cryptography", "dask", "distributed"):
        raise
    raise UsageError(f"--cluster: no module {error.name}; run: pip install 'sandbox-leakcheck[cluster]'") from error

__all__ = ["run_on_cluster"]
