"""A small SMTP server (RFC 5321) that keeps the messages it is given."""

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage


@contextmanager
def mailbox() -> Iterator[tuple[int, list[EmailMessage]]]:
    """Serve within the block; its port, and the messages that have come."""
    messages: list[EmailMessage] = []

    class Session(socketserver.StreamRequestHandler):
        def say(self, line: str) -> None:
            self.wfile.write(f"{line}\r\n".encode())

        def handle(self) -> None:
            self.say("220 mailbox ready")
            for raw in self.rfile:
                verb = raw.decode().strip().upper()
                if verb.startswith(("EHLO", "HELO")):
                    self.say("250 mailbox")
                elif verb == "DATA":
                    self.say("354 go on")
                    self.take()
                elif verb == "QUIT":
                    self.say("221 bye")
                    return
                else:
                    self.say("250 ok")

        def take(self) -> None:
            lines = []
            for raw in self.rfile:
                if raw == b".\r\n":
                    break
                lines.append(raw.removeprefix(b".") if raw.startswith(b"..") else raw)
            found = message_from_bytes(b"".join(lines), policy=policy.default)
            assert isinstance(found, EmailMessage)
            messages.append(found)
            self.say("250 kept")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Session) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server.server_address[1], messages
        server.shutdown()
