#!/usr/bin/python3
"""Restarts two edges behind HAProxy, one after the other, while clients send. No request may fail.

    tests/clients/rolling.py                          20 restarts of gateways
    tests/clients/rolling.py --edge envoy --restarts 4

HAProxy passes TCP on, so the clients speak TLS and HTTP/2 with the edges themselves, and follows /readiness (Envoy:
/ready). wrk sends POST over HTTP/1.1 connections that it keeps. Go's client sends POST over HTTP/2 and honours GOAWAY.
The upstream is nginx.

Needs the built workspace, and what `tests/run install` installs. Envoy needs `filters/wasm/build` too.
"""

import argparse
import contextlib
import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARIES = ROOT / "target/debug"
WITHIN_S = 60
# HAProxy asks every 100 ms and believes the second failure, so a second is more than it needs.
DRAIN_DELAY_S = 1

POLICY = """
listeners:
  - name: public
    address: 127.0.0.1:{public}
    tls: {{ certificate: "file:edge.pem", key: "file:edge.key" }}
admin: {{ address: "127.0.0.1:{admin}" }}
state: {{ service: {{ address: "127.0.0.1:{state}", timeout_ms: 1000 }} }}
upstreams:
  nginx: {{ addresses: ["127.0.0.1:{upstream}"], tls: off }}
filters:
  shape: {{}}
routes:
  - {{ name: all, methods: [POST], path: "/echo", timeout_ms: 5000, upstream: nginx }}
"""

NGINX = """
daemon off; pid nginx.pid; error_log stderr warn; worker_processes 1;
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u;
  scgi_temp_path s; keepalive_requests 1000000; keepalive_timeout 75s;
  server {{ listen {listen}; location / {{ return 200 "{{}}"; }} }}
}}
"""

# wrk's script for a POST with a body.
POST = """
wrk.method = "POST"
wrk.body = "{}"
wrk.headers["Content-Type"] = "application/json"
"""

HAPROXY = """
global
  stats socket unix@{folder}/haproxy.sock
defaults
  mode tcp
  retries 0
  timeout connect 2s
  timeout client 60s
  timeout server 60s
frontend edge
  bind 127.0.0.1:{front}
  default_backend edges
backend edges
  balance roundrobin
  option httpchk
  http-check send meth GET uri {readiness} ver HTTP/1.1 hdr Host edge
  http-check expect status 200
  default-server check inter 100ms fall 2 rise 1
  server a 127.0.0.1:{a_public} port {a_admin}
  server b 127.0.0.1:{b_public} port {b_admin}
"""


def free_ports(count):
    with contextlib.ExitStack() as opened:
        taken = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in taken]


def until(what, holds):
    end = time.monotonic() + WITHIN_S
    while not holds():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {WITHIN_S} s")
        time.sleep(0.02)


def answers_200(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


class Edge:
    """One instance, in a folder of its own, on ports that stay the same."""

    def __init__(self, name, kind, folder, ports, upstream):
        self.name, self.kind, self.folder = name, kind, folder
        self.public, self.admin, self.state = ports
        shutil.copytree(folder.parent / "pki", folder)
        self.policy = folder / "edge.yaml"
        self.policy.write_text(POLICY.format(public=self.public, admin=self.admin, state=self.state,
                                             upstream=upstream))
        self.log = (folder / "edge.log").open("w")
        self.service = None
        if kind == "envoy":
            out = folder / "envoy"
            subprocess.run([BINARIES / "gateway", "envoy", self.policy, "--module", ROOT / "target/wasm/torana.wasm",
                            "--out", out], check=True, stdout=subprocess.DEVNULL)
            self.service = self.spawn(BINARIES / "gateway", "state", self.policy, "--envoy", out)
        self.start()

    def spawn(self, *command):
        return subprocess.Popen([str(part) for part in command], cwd=self.folder, stdout=self.log,
                                stderr=subprocess.STDOUT)

    def start(self):
        if self.kind == "gateway":
            self.process = self.spawn(BINARIES / "gateway", "serve", self.policy, "--drain-delay-s", DRAIN_DELAY_S)
        else:
            self.process = self.spawn(ROOT / "target/envoy/envoy", "-c", self.folder / "envoy/envoy.json",
                                      "--concurrency", "1", "--log-level", "warning", "--disable-hot-restart",
                                      "--drain-time-s", "2", "--drain-strategy", "immediate")
        until(f"{self.name} is ready", lambda: answers_200(f"http://127.0.0.1:{self.admin}{readiness(self.kind)}"))

    def stop(self):
        if self.kind == "envoy":
            subprocess.run([BINARIES / "gateway", "drain-envoy", self.policy, "--drain-delay-s", str(DRAIN_DELAY_S)],
                           check=True)
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=WITHIN_S)

    def kill(self):
        for process in (self.process, self.service):
            if process:
                process.kill()
                process.wait()
        self.log.close()


def readiness(kind):
    return {"gateway": "/readiness", "envoy": "/ready"}[kind]


def haproxy_serves(folder, name):
    """Whether HAProxy gives the edge new connections."""
    with socket.socket(socket.AF_UNIX) as stats:
        stats.connect(str(folder / "haproxy.sock"))
        stats.sendall(b"show stat\n")
        text = b"".join(iter(lambda: stats.recv(65536), b"")).decode()
    rows = [line.split(",") for line in text.splitlines()]
    return any(row[:2] == ["edges", name] and row[17].startswith("UP") for row in rows)


def run(kind, restarts):
    folder = ROOT / f"target/clients/rolling-{kind}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    subprocess.run([BINARIES / "certs", "init", folder / "pki"], check=True, stdout=subprocess.DEVNULL)
    client = folder / "http2"
    subprocess.run(["go", "build", "-o", client, "."], cwd=ROOT / "tests/clients/http2", check=True)
    front, upstream, *ports = free_ports(8)
    (folder / "nginx.conf").write_text(NGINX.format(listen=f"127.0.0.1:{upstream}"))
    (folder / "post.lua").write_text(POST)
    (folder / "haproxy.cfg").write_text(HAPROXY.format(
        folder=folder, front=front, readiness=readiness(kind), a_public=ports[0], a_admin=ports[1], b_public=ports[3],
        b_admin=ports[4]))
    with contextlib.ExitStack() as running:
        log = running.enter_context((folder / "processes.log").open("w"))

        def background(*command, **more):
            process = subprocess.Popen([str(part) for part in command], cwd=folder, stderr=log,
                                       text=True, **{"stdout": log, **more})
            # nginx takes its workers with it only when it is asked to end.
            stop = process.terminate if "nginx" in str(command[0]) else process.kill
            running.callback(lambda: (process.poll() is None and stop(), process.wait()))
            return process

        background(shutil.which("nginx") or "/usr/sbin/nginx", "-p", folder, "-c", folder / "nginx.conf")
        until("nginx answers", lambda: answers_200(f"http://127.0.0.1:{upstream}/"))
        edges = []
        for name, own in zip("ab", (ports[:3], ports[3:])):
            edges.append(Edge(name, kind, folder / name, own, upstream))
            running.callback(edges[-1].kill)
        background(shutil.which("haproxy") or "/usr/sbin/haproxy", "-db", "-f", folder / "haproxy.cfg")
        until("HAProxy serves", lambda: (folder / "haproxy.sock").exists()
              and all(haproxy_serves(folder, edge.name) for edge in edges))

        url = f"https://localhost:{front}/echo"
        seconds = 3600
        wrk = background("wrk", "-t1", "-c8", f"-d{seconds}s", "--timeout", "30s", "-s", folder / "post.lua", url,
                         stdout=subprocess.PIPE)
        http2 = background(client, "-url", url, "-ca", folder / "pki/edge-ca.pem", stdout=subprocess.PIPE)
        began = time.monotonic()
        for number in range(restarts):
            edge = edges[number % 2]
            edge.stop()
            edge.start()
            until(f"HAProxy serves {edge.name}", lambda: haproxy_serves(folder, edge.name))
            print(f"restart {number + 1} of {restarts}: {edge.name}, {time.monotonic() - began:.1f} s", flush=True)
        wrk.send_signal(signal.SIGINT)
        http2.send_signal(signal.SIGTERM)
        of_wrk, of_http2 = wrk.communicate(timeout=WITHIN_S)[0], json.loads(http2.communicate(timeout=WITHIN_S)[0])
    requests = int(re.search(r"(\d+) requests in", of_wrk)[1])
    print(f"wrk, HTTP/1.1: {requests} requests; Go, HTTP/2: {of_http2['answered']} answered, {of_http2['failed']} failed")
    good = requests > 0 and of_http2["answered"] > 0 and of_http2["failed"] == 0
    if "Socket errors" in of_wrk or "Non-2xx" in of_wrk:
        good = False
        print(of_wrk)
    for failure in of_http2["failures"] or []:
        print(f"  {failure}")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", choices=["gateway", "envoy"], default="gateway")
    parser.add_argument("--restarts", type=int, default=20)
    options = parser.parse_args()
    sys.exit(0 if run(options.edge, options.restarts) else 1)


if __name__ == "__main__":
    main()
