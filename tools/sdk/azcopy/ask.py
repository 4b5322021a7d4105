"""Asks for tokens with azcopy, which lists a container; see ../README.md."""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import answers
from loopback import Service

AZCOPY = Path(__file__).parent / "node_modules/@azure-tools/azcopy-linux/dist/bin/azcopy_linux_amd64"
NAMES = {"client": "AZCOPY_MSI_CLIENT_ID", "resource": "AZCOPY_MSI_RESOURCE_STRING"}
STORAGE = Service("application/xml", b'<?xml version="1.0"?><EnumerationResults><Blobs/><NextMarker/></EnumerationResults>')


def azcopy(*arguments, **environment):
    with tempfile.TemporaryDirectory() as folder:
        own = {"HOME": folder, "AZCOPY_LOG_LOCATION": folder, "AZCOPY_JOB_PLAN_LOCATION": folder, "SSL_CERT_FILE": str(STORAGE.certificate)}
        output = subprocess.run([AZCOPY, *arguments], env={**os.environ, **own, **environment}, capture_output=True, text=True)
    if output.returncode:
        raise RuntimeError(output.stdout + output.stderr)
    return output.stdout


def ask(case):
    if "object" in case:
        raise answers.Unsupported
    named = {NAMES[name]: value for name, value in case.items() if name in NAMES}
    account = "-".join(["account", *(name for name in case if name in NAMES)])
    container = f"{STORAGE.url}/{account}/container"
    azcopy("list", container, "--location=blob", f"--trusted-microsoft-suffixes={STORAGE.authority}", AZCOPY_AUTO_LOGIN_TYPE="MSI", **named)
    return STORAGE.tokens[account]


VERSION = azcopy("--version").split()[-1]
answers.run(ask, lambda _: VERSION)
