"""Create a certificate for TLS between Dask's processes, unless it exists: certificates.py FOLDER.

The files are dask.crt, self-signed, and dask.key: the certificate that Dask creates for temporary clusters. The
scheduler, all workers and all clients use both. Anyone who has them can connect: treat them like a password. They are
valid for a year.
"""

import sys
from pathlib import Path

from distributed import Security


def create_certificate(folder: Path) -> None:
    """Write dask.crt and dask.key, readable by their owner only, unless both exist."""
    certificate, key = folder / "dask.crt", folder / "dask.key"
    if certificate.exists() and key.exists():
        print(f"{certificate} and {key} exist already: remove both to create new ones")
        return
    if certificate.exists() or key.exists():
        sys.exit(f"{folder} has only one of {certificate.name} and {key.name}: remove it to create both")
    security = Security.temporary()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path, text in ((key, security.tls_client_key), (certificate, security.tls_client_cert)):
        # Restrict the access before anything is written.
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(text)
    print(f"{certificate} and {key} are valid for a year")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER")
    create_certificate(Path(sys.argv[1]))
