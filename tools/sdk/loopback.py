"""An HTTPS server on the loopback address that stands for a service of Azure, for the clients that show a token only to one."""
import subprocess
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from threading import Thread


class Service:
    """Answers every request that has a bearer token with `body`; `tokens` has the tokens, by the first part of the path."""

    def __init__(self, content_type, body):
        self.tokens = {}
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        self.certificate, key = folder / "cert.pem", folder / "key.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "2",
             "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-out", self.certificate, "-keyout", key],
            check=True, capture_output=True,
        )
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                if token:
                    service.tokens[self.path.split("/")[1].split("?")[0]] = token
                self.send_response(200 if token else 401)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body) if token else 0))
                self.end_headers()
                self.wfile.write(body if token else b"")

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = SSLContext(PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        self.authority = f"127.0.0.1:{server.server_address[1]}"
        self.url = f"https://{self.authority}"
        Thread(target=server.serve_forever, daemon=True).start()
