"""Plays AAD Pod Identity: `nmi` serves tokens on loopback, `mic` holds the lock of its controller, as client-go does."""
import calendar, http.server, json, os, signal, ssl, sys, threading, time, urllib.error, urllib.request

LOCK = "aad-pod-identity-mic"
LEADER = "control-plane.alpha.kubernetes.io/leader"
LEASE = 15  # seconds
RENEW = 2  # seconds
DRAIN = 3  # seconds
ENDPOINTS = "/api/v1/namespaces/default/endpoints"
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"

leaving = threading.Event()


class Tokens(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = json.dumps({"access_token": "token", "client_id": "the original"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if leaving.is_set():
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128


def nmi():
    server = Server(("127.0.0.1", 2579), Tokens)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    signal.sigwait([signal.SIGTERM])
    # Clients are told that their connections end.
    leaving.set()
    time.sleep(DRAIN)


def call(method, path, body=None):
    address = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}{path}"
    with open(f"{ACCOUNT}/token") as token:
        headers = {"Authorization": f"Bearer {token.read()}", "Content-Type": "application/json"}
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(address, data, headers, method=method)
    context = ssl.create_default_context(cafile=f"{ACCOUNT}/ca.crt")
    with urllib.request.urlopen(request, timeout=5, context=context) as answer:
        return json.load(answer)


def try_lock(me):
    try:
        lock, method, path = call("GET", f"{ENDPOINTS}/{LOCK}"), "PUT", f"{ENDPOINTS}/{LOCK}"
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        lock, method, path = {"metadata": {"name": LOCK}}, "POST", ENDPOINTS
    annotations = lock["metadata"].setdefault("annotations", {})
    record = json.loads(annotations.get(LEADER, "{}"))
    now = time.time()
    if record.get("holderIdentity") not in (None, "", me):
        renewed = calendar.timegm(time.strptime(record["renewTime"][:19], "%Y-%m-%dT%H:%M:%S"))
        if now - renewed < record["leaseDurationSeconds"]:
            return
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    annotations[LEADER] = json.dumps(
        {"holderIdentity": me, "leaseDurationSeconds": LEASE, "acquireTime": at, "renewTime": at, "leaderTransitions": 0}
    )
    call(method, path, lock)


def mic():
    while True:
        try:
            try_lock(os.environ["HOSTNAME"])
        except OSError as error:
            # Another replica was faster, or the API server is away.
            print(error, flush=True)
        time.sleep(RENEW)


signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
{"nmi": nmi, "mic": mic}[sys.argv[1]]()
