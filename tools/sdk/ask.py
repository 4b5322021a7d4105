"""Asks for tokens with azure-identity and msal; see README.md."""
import asyncio
import time
from importlib import metadata

import azure.identity as identity
import azure.identity.aio as aio
import msal
import requests
from azure.core.credentials import AccessToken

import answers

SCOPE = "https://vault.azure.net/.default"
RESOURCE = "https://vault.azure.net"


class Next:
    """The credential after the managed identity in a chain."""

    def get_token(self, *_, **__):
        return AccessToken("the next credential", int(time.time()) + 3600)


def named(case):
    if "client" in case:
        return {"client_id": case["client"]}
    if "resource" in case:
        return {"identity_config": {"resource_id": case["resource"]}}
    if "object" in case:
        return {"identity_config": {"object_id": case["object"]}}
    return {}


def default_options(case):
    options = {"exclude_developer_cli_credential": True, "exclude_cli_credential": True, "exclude_powershell_credential": True}
    if "client" in case:
        options["managed_identity_client_id"] = case["client"]
    return options


def with_msal(case):
    if "client" in case:
        who = msal.UserAssignedManagedIdentity(client_id=case["client"])
    elif "resource" in case:
        who = msal.UserAssignedManagedIdentity(resource_id=case["resource"])
    elif "object" in case:
        who = msal.UserAssignedManagedIdentity(object_id=case["object"])
    else:
        who = msal.SystemAssignedManagedIdentity()
    client = msal.ManagedIdentityClient(who, http_client=requests.Session())
    answer = client.acquire_token_for_client(resource=RESOURCE)
    if "access_token" not in answer:
        raise RuntimeError(f"{answer.get('error')}: {answer.get('error_description')}")
    return answer["access_token"]


async def with_aio(case):
    if case["how"] == "aio-default":
        credential = aio.DefaultAzureCredential(**default_options(case))
    else:
        credential = aio.ManagedIdentityCredential(**named(case))
    async with credential:
        return (await credential.get_token(SCOPE)).token


def ask(case):
    how = case["how"]
    if how == "msal":
        return with_msal(case)
    if how.startswith("aio"):
        return asyncio.run(with_aio(case))
    if how == "default":
        credential = identity.DefaultAzureCredential(**default_options(case))
    else:
        credential = identity.ManagedIdentityCredential(**named(case))
    if how == "chain":
        credential = identity.ChainedTokenCredential(credential, Next())
    return credential.get_token(SCOPE).token


answers.run(ask, lambda case: metadata.version("msal" if case["how"] == "msal" else "azure-identity"))
