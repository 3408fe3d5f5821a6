"""A software TPM (swtpm), which the tests start; it serves one connection at a time."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def free_ports() -> tuple[int, int]:
    """Two neighbouring ports: swtpm's users expect its control on the next one."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port, port + 1


@contextmanager
def software_tpm(folder: Path) -> Iterator[int]:
    """A running TPM with its state in a folder, which the environment names; gives its port."""
    port, control = free_ports()
    command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}"]
    command += ["--server", f"type=tcp,port={port}", "--ctrl", f"type=tcp,port={control}"]
    command += ["--flags", "not-need-init,startup-clear"]
    with subprocess.Popen(command) as process, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPM2TOOLS_TCTI", f"swtpm:port={port}")
        try:
            yield port
        finally:
            process.terminate()
