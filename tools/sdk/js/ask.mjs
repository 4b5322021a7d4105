// Asks for tokens with @azure/identity and msal-node; see ../README.md.
import { ChainedTokenCredential, DefaultAzureCredential, ManagedIdentityCredential } from "@azure/identity";
import { ManagedIdentityApplication } from "@azure/msal-node";
import { readFileSync } from "node:fs";

const SCOPE = "https://vault.azure.net/.default";
const next = { getToken: async () => ({ token: "the next credential", expiresOnTimestamp: Date.now() + 3600_000 }) };

const PACKAGES = { msal: "@azure/msal-node", "identity-1": "identity-1", "identity-2": "identity-2" };

class Unsupported extends Error {}

function version({ how }) {
  const file = new URL(`node_modules/${PACKAGES[how] ?? "@azure/identity"}/package.json`, import.meta.url);
  return JSON.parse(readFileSync(file)).version;
}

// The first argument of the constructor was the client id; version 2 learned of the resource id.
async function old({ how, client, resource, object }) {
  if (object || (resource && how === "identity-1")) throw new Unsupported();
  const { ManagedIdentityCredential: Old } = await import(how);
  return resource ? new Old({ resourceId: resource }) : client ? new Old(client) : new Old();
}

function named({ client, resource, object }) {
  if (client) return { clientId: client };
  if (resource) return { resourceId: resource };
  if (object) return { objectId: object };
  return undefined;
}

async function withMsal({ client, resource, object }) {
  const managedIdentityIdParams = client
    ? { userAssignedClientId: client }
    : resource
      ? { userAssignedResourceId: resource }
      : object
        ? { userAssignedObjectId: object }
        : undefined;
  const app = new ManagedIdentityApplication({ managedIdentityIdParams });
  return (await app.acquireToken({ resource: "https://vault.azure.net", forceRefresh: true })).accessToken;
}

async function ask(test) {
  if (test.how === "msal") return withMsal(test);
  if (test.how.startsWith("identity-")) return (await (await old(test)).getToken(SCOPE)).token;
  if (test.how === "default") {
    return (await new DefaultAzureCredential({ managedIdentityClientId: test.client }).getToken(SCOPE)).token;
  }
  const credential = new ManagedIdentityCredential(named(test));
  const first = test.how === "chain" ? new ChainedTokenCredential(credential, next) : credential;
  return (await first.getToken(SCOPE)).token;
}

async function answer(test) {
  const started = performance.now();
  const said = await ask(test).then(
    (token) => ({ token }),
    (error) => (error instanceof Unsupported ? { unsupported: true } : { error: `${error.name}: ${error.message}` }),
  );
  return { ...said, seconds: (performance.now() - started) / 1000, version: version(test) };
}

for (const line of await Promise.all(JSON.parse(process.argv[2]).map(answer))) console.log(JSON.stringify(line));
process.exit(0);
