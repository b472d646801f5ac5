"""A stand-in for a server that speaks OpenAI's protocol, which answers well or badly as a test tells it."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Stand:
    """A server that answers by turns as it is told: with words, (code, headers, body), or what a callable gives."""

    def __init__(self, *turns):
        self.turns, self.seen, self.lock = list(turns), [], threading.Lock()
        stand = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stand.lock:
                    stand.seen.append((self.path, dict(self.headers), body))
                    turn = stand.turns.pop(0) if len(stand.turns) > 1 else stand.turns[0]
                if callable(turn):
                    turn = turn(body)
                if isinstance(turn, str):
                    turn = (200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": turn}}]}))
                code, headers, text = turn
                try:
                    self.send_response(code)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(text.encode())
                except OSError:
                    pass  # who asked has not waited

            do_GET = do_POST

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()
