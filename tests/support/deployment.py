"""What tests of `deploy/` share."""

from dseeds.parallel.local_cluster import KEPT_BYTES
from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"


ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES), "MALLOC_MMAP_THRESHOLD_": str(KEPT_BYTES)}
