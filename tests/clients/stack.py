"""A stack of the development command for scripts that drive it with clients, and how they fail."""

import json
import pathlib
import re
import signal
import subprocess
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARIES = ROOT / "target/debug"
# Longer than any start on a busy machine takes.
READY_WITHIN_S = 120


class Failed(Exception):
    """What a client or a socket did wrong."""


class Stack:
    """A stack of the development command, in a folder of its own."""

    def __init__(self, edge, engines):
        self.edge = edge
        self.folder = ROOT / f"target/clients/{edge}-{engines}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.output = self.folder / "stack.log"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [BINARIES / "stack", "--dir", self.folder, "--edge", edge, "--engines", engines],
                stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT)

    def wait(self):
        """Returns once the first payment has ended and the stack waits for more."""
        until = time.monotonic() + READY_WITHIN_S
        while "Ctrl-C stops everything" not in (text := self.output.read_text()):
            if self.process.poll() is not None or time.monotonic() > until:
                raise Failed(f"the stack did not start:\n{text}")
            time.sleep(0.1)
        described = json.loads((self.folder / "stack.json").read_text())
        self.url = described["edge_url"]
        self.ca = described["ca_file"]
        self.token_file = described["token_file"]
        self.token = pathlib.Path(self.token_file).read_text().strip()
        self.device_key_file = described["device_key_file"]
        self.services = described["services"]
        self.payment = re.search(r"accepted as (\w{35})", text)[1]
        return self

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)

    def pids(self):
        """The processes whose sockets are looked at, by name."""
        return {service["name"]: service["pid"] for service in self.services}

    def postgres(self):
        """The port of PostgreSQL, if there is one. sqlx opens its sockets itself and has no setting for them. It sends
        each round trip in one write, so Nagle's algorithm holds nothing back."""
        url = self.folder / "keys/database.url"
        return {urllib.parse.urlsplit(url.read_text().strip()).port} if url.exists() else set()

    def dev(self, *arguments):
        return run("cargo dev", [BINARIES / "stack", *arguments, "--dir", self.folder])


def run(name, command, cwd=ROOT, timeout=120, env=None):
    """The command's standard output. Fails when the command does."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout, cwd=cwd,
                          env=env)
    if done.returncode != 0:
        raise Failed(f"{name} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def need(name, found, output):
    if not found:
        raise Failed(f"{name}:\n{output}")
