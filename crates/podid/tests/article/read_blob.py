"""The article's program: reads a blob with whatever identity the pod has."""

import sys

from azure.identity import ManagedIdentityCredential
from azure.storage.blob import BlobServiceClient

account_url, container, blob = sys.argv[1:]

credential = ManagedIdentityCredential()
client = BlobServiceClient(account_url, credential=credential)

print(client.get_blob_client(container, blob).download_blob().readall().decode())
