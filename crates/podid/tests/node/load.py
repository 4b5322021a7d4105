"""Asks for a token all the time, by two clients, and writes a line for each request: when it was sent, how long it took, by which client,
and "token" with the client id of the identity that it is of, or "failed" with what was answered. A request is never sent twice."""
import http.client, json, select, sys, threading, time

PAUSE = 0.05  # seconds
TIMEOUT = 20  # seconds
TARGET = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"


def ask(connection, headers):
    # A connection that the server has closed meanwhile is not used again, as with every HTTP client.
    if connection.sock and select.select([connection.sock], [], [], 0)[0]:
        connection.close()
    try:
        connection.request("GET", TARGET, headers={"Metadata": "true", **headers})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status == 200:
            return "token " + json.loads(body)["client_id"]
        return f"failed {answer.status} {body[:300]!r}"
    except Exception as error:
        connection.close()
        return f"failed {error!r}"


def client(name, headers, lines):
    connection = http.client.HTTPConnection("169.254.169.254", timeout=TIMEOUT)
    while True:
        began = time.time()
        said = ask(connection, headers)
        lines.write(f"{began:.3f} {time.time() - began:.3f} {name} {said}\n")
        time.sleep(PAUSE)


with open(sys.argv[1], "a", buffering=1) as lines:
    kept = threading.Thread(target=client, args=("kept", {}, lines))
    kept.start()
    client("fresh", {"Connection": "close"}, lines)
