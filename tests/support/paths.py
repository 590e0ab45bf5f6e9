"""Folders that tests need."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Real volumes, which are not part of the project.
DATA = Path(os.environ.get("DSEEDS_DATA") or ROOT.parent / "shared" / "data").resolve()
