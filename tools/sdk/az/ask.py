"""Asks for tokens with the Azure CLI, as `az login --identity` and `az account get-access-token`; see ../README.md."""
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import answers
from loopback import Service

OPTIONS = {"client": "--client-id", "resource": "--resource-id", "object": "--object-id"}
# Azure Resource Manager, which `az login` asks for the subscriptions.
ARM = Service("application/json", b'{"value":[]}')
CLOUD = f"""[AzureCloud]
endpoint_management = {ARM.url}
endpoint_resource_manager = {ARM.url}
"""


def az(folder, *arguments):
    environment = {**os.environ, "AZURE_CONFIG_DIR": folder, "REQUESTS_CA_BUNDLE": str(ARM.certificate)}
    command = [sys.executable, "-m", "azure.cli", *arguments, "--only-show-errors"]
    output = subprocess.run(command, env=environment, capture_output=True, text=True)
    if output.returncode:
        raise RuntimeError(output.stderr.strip())
    return output.stdout


def ask(case):
    named = [text for name, option in OPTIONS.items() if name in case for text in (option, case[name])]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(Path(sys.prefix) / "config", folder, dirs_exist_ok=True)
        (Path(folder) / "clouds.config").write_text(CLOUD)
        az(folder, "login", "--identity", *named, "--allow-no-subscriptions")
        return json.loads(az(folder, "account", "get-access-token", "--resource", "https://vault.azure.net"))["accessToken"]


answers.run(ask, lambda _: metadata.version("azure-cli"))
