"""Takes OTLP over HTTP, compressed with gzip, until it is ended. Prints its port, and then for each
request what it is of ("traces" or "logs") and its protobuf in base64."""

import base64
import gzip
import http.server
import sys
import threading

# Requests are taken in threads, and a long line is not written at once.
WRITING = threading.Lock()


class Sink(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        kind = self.path.rsplit("/", 1)[-1]
        line = f"{kind} {base64.b64encode(body).decode()}\n"
        with WRITING:
            sys.stdout.write(line)
            sys.stdout.flush()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink)
print(server.server_address[1], flush=True)
server.serve_forever()
