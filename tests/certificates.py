"""An authority of a test's own, and certificates of it, made by the openssl program."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from shared.settings_sections import TlsSettings


class Authority:
    """Makes its key and certificate in ``folder``, and those it issues beside them. ``days`` below 0: it expired that
    long ago."""

    def __init__(self, folder: Path, *, days: int = 2) -> None:
        if shutil.which("openssl") is None and not os.environ.get("CI"):
            pytest.skip("needs the openssl program")
        self._folder = folder
        self.certificate = self._file("authority.pem")
        self._make("authority", days, "basicConstraints=critical,CA:TRUE", "-signkey", self._file("authority.key"))

    def issue(self, name: str, *, days: int = 2, use: str = "serverAuth,clientAuth") -> TlsSettings:
        """A certificate for ``name`` with its key."""
        signer = ("-CA", self.certificate, "-CAkey", self._file("authority.key"), "-CAcreateserial")
        self._make(name, days, f"basicConstraints=CA:FALSE\nextendedKeyUsage={use}", *signer)
        return TlsSettings(
            certificate=self._file(f"{name}.pem"), key=self._file(f"{name}.key"), authority=self.certificate
        )

    def _make(self, name: str, days: int, extensions: str, *signer: str | Path) -> None:
        request, key, extra = (self._file(f"{name}.{kind}") for kind in ("csr", "key", "ext"))
        extra.write_text(f"{extensions}\n")
        elliptic = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        _openssl("req", "-new", *elliptic, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        dated = ("-days", str(days), "-extfile", extra)
        _openssl("x509", "-req", "-in", request, *dated, *signer, "-out", self._file(f"{name}.pem"))

    def _file(self, name: str) -> Path:
        return self._folder / name


def _openssl(*command: str | Path) -> None:
    done = subprocess.run(["openssl", *command], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
