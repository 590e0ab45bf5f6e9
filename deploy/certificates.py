"""Make a certificate for TLS between Dask's processes, unless there is one: certificates.py FOLDER.

It is Dask's own temporary one, written down: dask.crt, which is its own authority, and dask.key. The scheduler, all
workers and all clients use both, and who has them is let in: they are as good as a password, for a year.
"""

import sys
from pathlib import Path

from distributed import Security


def make(folder: Path) -> None:
    """Write dask.crt and dask.key, which their owner alone can read, or leave what is there."""
    certificate, key = folder / "dask.crt", folder / "dask.key"
    if certificate.exists() and key.exists():
        print(f"{certificate} and {key} are there already: remove both to have others made")
        return
    if certificate.exists() or key.exists():
        sys.exit(f"{folder} has only one of {certificate.name} and {key.name}: remove it to have both made")
    made = Security.temporary()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path, text in ((key, made.tls_client_key), (certificate, made.tls_client_cert)):
        # Its owner's from the very first.
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(text)
    print(f"{certificate} and {key} are good for a year")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER")
    make(Path(sys.argv[1]))
