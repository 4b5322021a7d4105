"""Asks for tokens with old releases of azure-identity and with msrestazure; see ../README.md."""
import sys
from importlib import metadata
from pathlib import Path

from azure.identity import ManagedIdentityCredential
from msrestazure.azure_active_directory import MSIAuthentication

sys.path.insert(0, str(Path(__file__).parent.parent))
import answers

NAMES = {"client": "client_id", "resource": "msi_res_id", "object": "object_id"}


def ask(case):
    ids = {NAMES[name]: value for name, value in case.items() if name in NAMES}
    if case["how"] == "msrestazure":
        return MSIAuthentication(resource="https://vault.azure.net", **ids).token["access_token"]
    if "resource" in case or "object" in case:
        raise answers.Unsupported
    return ManagedIdentityCredential(**ids).get_token("https://vault.azure.net/.default").token


answers.run(ask, lambda case: metadata.version(case["how"]))
