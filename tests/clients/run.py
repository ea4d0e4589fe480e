#!/usr/bin/python3
"""Drives a running stack with clients that people use, for a few seconds each.

    tests/clients/run.py                     the gateway, on embedded engines
    tests/clients/run.py --edge envoy --engines fleet

It starts a stack of its own and ends it. wrk, hey, h2load, curl, Python's websockets and Node send over
HTTP/1.1, HTTP/2 and WebSocket. It fails on any error, on any socket without TCP_NODELAY, and when one connection's
median latency is above 20 ms in three runs in a row.

Needs the built workspace (cargo build --workspace) and what `tests/run install` installs.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import re
import ssl
import subprocess
import sys
import time
import urllib.parse

import websockets

import sockets
from stack import READY_WITHIN_S, ROOT, Failed, Stack, need, run

RUN_S = 3
# The one timing that is asserted. A stall of Nagle's algorithm and a delayed acknowledgement is 40 ms;
# an honest run stays below 5 ms.
MEDIAN_BELOW_MS = 20
RUNS_IN_A_ROW = 3


def wrk(stack, connections, seconds=RUN_S):
    """Keep-alive GETs over HTTP/1.1. Returns the median in milliseconds."""
    out = run("wrk", ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-H",
                      f"Authorization: Bearer {stack.token}", f"{stack.url}/v1/transactions/{stack.payment}"])
    need("wrk saw errors", "Non-2xx" not in out and "Socket errors" not in out, out)
    need("wrk got no response", int(re.search(r"(\d+) requests in", out)[1]) > 0, out)
    median = re.search(r"50%\s+([\d.]+)(us|ms|s)", out)
    return float(median[1]) * {"us": 0.001, "ms": 1, "s": 1000}[median[2]]


def hey(stack, *options):
    # Without -host it sends "localhost:PORT" as the TLS server name, which is no DNS name (RFC 6066, section 3);
    # rustls refuses it.
    out = run("hey", ["hey", *options, "-host", "localhost", "-H", f"Authorization: Bearer {stack.token}",
                      f"{stack.url}/v1/transactions/{stack.payment}"])
    statuses = dict(re.findall(r"\[(\d{3})\]\s+(\d+) responses", out))
    need("hey saw errors", list(statuses) == ["200"] and "Error distribution" not in out, out)


def h2load(stack, *protocol):
    out = run("h2load", ["h2load", "-c", "4", "-m", "4", "-D", str(RUN_S), *protocol, "-H",
                         f"authorization: Bearer {stack.token}",
                         f"{stack.url}/v1/transactions/{stack.payment}"])
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", out)
    need("h2load saw errors", int(counts[1]) > 0 and counts.groups()[1:] == ("0", "0", "0"), out)
    need("h2load saw other statuses", re.search(r"status codes: \d+ 2xx, 0 3xx, 0 4xx, 0 5xx", out), out)


def curl(stack, version):
    """A payment, then its status until it is COMPLETED, each over a connection of its own."""
    command = stack.dev("pay", "--from", "alice@torana", "--to", "bob@torana", "--amount", "1.25", "--curl").strip()
    out = run("curl", ["bash", "-c", f"{command} --http{version} --silent --show-error --fail-with-body"])
    transaction = json.loads(out)["txnId"]
    until = time.monotonic() + READY_WITHIN_S
    while True:
        out = run("curl", ["curl", f"--http{version}", "--silent", "--show-error", "--fail-with-body", "--cacert",
                           stack.ca, "--header", f"Authorization: Bearer {stack.token}", "--write-out",
                           "\n%{http_version}", f"{stack.url}/v1/transactions/{transaction}"])
        body, spoken = out.rsplit("\n", 1)
        need(f"curl spoke HTTP/{spoken}", spoken.startswith(version[0]), out)
        if json.loads(body)["status"] == "COMPLETED":
            return
        need("the payment did not complete", time.monotonic() < until, out)
        time.sleep(0.05)


def websocket(stack):
    """Follows a payment on a WebSocket until it is COMPLETED."""
    out = stack.dev("pay", "--from", "alice@torana", "--to", "bob@torana", "--amount", "2.50")
    transaction = re.search(r"accepted as (\w{35})", out)[1]

    async def follow():
        trust = ssl.create_default_context(cafile=stack.ca)
        url = f"{stack.url.replace('https', 'wss')}/v1/transactions/{transaction}/events"
        fields = {"Authorization": f"Bearer {stack.token}"}
        async with websockets.connect(url, ssl=trust, extra_headers=fields, open_timeout=30) as socket:
            async for message in socket:
                if json.loads(message)["status"] == "COMPLETED":
                    return
        raise Failed("the WebSocket ended before the payment did")

    asyncio.run(asyncio.wait_for(follow(), READY_WITHIN_S))


def websocket_h2(stack):
    """Follows a payment on a WebSocket over HTTP/2 until it is COMPLETED."""
    out = stack.dev("pay", "--from", "alice@torana", "--to", "bob@torana", "--amount", "2.75")
    transaction = re.search(r"accepted as (\w{35})", out)[1]
    run("node", ["node", ROOT / "tests/clients/websocket_h2.mjs", f"{stack.url}/v1/transactions/{transaction}/events",
                 stack.ca, stack.token])


@contextlib.contextmanager
def busy(stack):
    """Load from every side while sockets are looked at: requests, payments, a WebSocket, the admin addresses."""
    url, bearer = f"{stack.url}/v1/transactions/{stack.payment}", f"Authorization: Bearer {stack.token}"
    load = subprocess.Popen(["wrk", "-t1", "-c4", "-d60s", "-H", bearer, url], stdout=subprocess.DEVNULL)
    admins = []
    try:
        for service in stack.services:
            if service["admin_url"]:
                place = urllib.parse.urlsplit(service["admin_url"])
                admin = http.client.HTTPConnection(place.hostname, place.port, timeout=30)
                admin.request("GET", "/health")
                admin.getresponse().read()
                admins.append(admin)
        stack.dev("pay", "--from", "alice@torana", "--to", "bob@torana", "--amount", "3.75")
        yield
    finally:
        for admin in admins:
            admin.close()
        load.terminate()
        load.wait()


def nodelay(stack):
    """TCP_NODELAY on every connected socket of every process of the stack."""
    exempt = stack.postgres()
    delayed = []
    with busy(stack):
        for name, pid in stack.pids().items():
            connections = sockets.connected(pid)
            need(f"{name} has no connection to look at", connections or name == "state", connections)
            delayed += [f"{name}: {connection}" for connection in connections
                        if not connection.nodelay and connection.peer_port not in exempt]
    need("sockets without TCP_NODELAY", not delayed, "\n".join(delayed))


def median_latency(stack):
    medians = []
    while len(medians) < RUNS_IN_A_ROW:
        medians.append(wrk(stack, 1))
        if medians[-1] <= MEDIAN_BELOW_MS:
            return f"{medians[-1]:.2f} ms"
    raise Failed(f"median latency of one connection: {medians} ms, each above {MEDIAN_BELOW_MS} ms")


CHECKS = [
    ("wrk, 32 connections, HTTP/1.1", lambda stack: f"median {wrk(stack, 32):.2f} ms"),
    ("hey, HTTP/1.1", lambda stack: hey(stack, "-c", "4", "-z", f"{RUN_S}s")),
    # One connection. Go's client resets many streams after their response: more than Envoy lets by default.
    ("hey, HTTP/2", lambda stack: hey(stack, "-h2", "-c", "1", "-n", "4000")),
    ("h2load, HTTP/1.1", lambda stack: h2load(stack, "--h1")),
    ("h2load, HTTP/2", h2load),
    ("curl pays, HTTP/1.1", lambda stack: curl(stack, "1.1")),
    ("curl pays, HTTP/2", lambda stack: curl(stack, "2")),
    ("Python websockets", websocket),
    ("Node, WebSocket over HTTP/2", websocket_h2),
    ("TCP_NODELAY on every socket", nodelay),
    ("median latency, one connection", median_latency),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", choices=["gateway", "envoy"], default="gateway")
    parser.add_argument("--engines", choices=["embedded", "fleet"], default="embedded")
    options = parser.parse_args()
    failures = 0
    stack = Stack(options.edge, options.engines)
    try:
        stack.wait()
        for name, check in CHECKS:
            began = time.monotonic()
            try:
                result = check(stack) or "ok"
            except (Failed, subprocess.TimeoutExpired, asyncio.TimeoutError, OSError) as error:
                failures += 1
                result = f"FAILED: {error}"
            print(f"{name:32} {time.monotonic() - began:5.1f} s  {result}", flush=True)
    except Failed as error:
        failures += 1
        print(error)
    finally:
        stack.stop()
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
