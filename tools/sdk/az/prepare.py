"""Makes the Azure CLI's index of commands, which it else makes at every start in a new home."""
import os
import subprocess
import sys
from pathlib import Path

environment = {**os.environ, "AZURE_CONFIG_DIR": str(Path(sys.prefix) / "config")}
for setting in ["core.collect_telemetry=no", "auto-upgrade.enable=no"]:
    subprocess.run([sys.executable, "-m", "azure.cli", "config", "set", setting, "--only-show-errors"], env=environment, check=True)
