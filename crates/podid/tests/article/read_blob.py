"""The article's program: reads a blob with whatever identity the pod has. Settings of the client may follow, as JSON."""

import json
import sys

from azure.identity import ManagedIdentityCredential
from azure.storage.blob import BlobServiceClient

account_url, container, blob, *settings = sys.argv[1:]

credential = ManagedIdentityCredential()
client = BlobServiceClient(account_url, credential=credential, **json.loads("".join(settings) or "{}"))

print(client.get_blob_client(container, blob).download_blob().readall().decode())
