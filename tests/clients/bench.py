#!/usr/bin/python3
"""Compares the gateway with Envoy's own filters, with wrk, in one run.

    tests/clients/bench.py                       3 rounds of 5 s each, alternating
    tests/clients/bench.py --rounds 5 --seconds 10

Both verify an ES256 token on a POST, speak TLS on both sides, have one thread and write a line of JSON about each request
to a file. Envoy runs jwt_authn with its cache.
The upstream is nginx. Printed are the median latency, the requests a second and the CPU time a request; read the
ratios, because machines differ.

Needs `cargo build --release --bin gateway`, `cargo build --bin certs`, and what `tests/run install` installs.
"""

import argparse
import base64
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import time

from rolling import NGINX, POST, answers_200, free_ports, until

ROOT = pathlib.Path(__file__).resolve().parents[2]

POLICY = """
listeners:
  - name: public
    address: 127.0.0.1:{gateway}
    tls: {{ certificate: "file:pki/edge.pem", key: "file:pki/edge.key" }}
admin: {{ address: "127.0.0.1:{gateway_admin}" }}
upstreams:
  nginx:
    addresses: ["127.0.0.1:{upstream}"]
    tls: {{ server_name: txn-core.torana.internal, ca: "file:pki/internal-ca.pem" }}
issuers:
  bench: {{ issuer: "https://issuer.test", audiences: [bench], algorithms: [ES256], jwks: {{ file: "file:jwks.json" }} }}
filters: {{ shape: {{}}, jwt: {{}} }}
routes:
  - {{ name: pay, methods: [POST], path: /pay, timeout_ms: 5000, upstream: nginx }}
"""


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def key_and_token(folder):
    """A JWKS with one P-256 key, and a token that it has signed."""
    key = folder / "issuer.pem"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key], check=True)
    public = subprocess.run(["openssl", "ec", "-in", key, "-pubout", "-outform", "DER"], check=True,
                            capture_output=True).stdout[-64:]
    jwk = {"kty": "EC", "crv": "P-256", "kid": "bench", "alg": "ES256", "use": "sig", "x": encoded(public[:32]),
           "y": encoded(public[32:])}
    now = int(time.time())
    claims = {"iss": "https://issuer.test", "aud": "bench", "sub": "u-1", "iat": now, "exp": now + 3600, "jti": "t-1"}
    parts = [{"alg": "ES256", "kid": "bench", "typ": "JWT"}, claims]
    signed = ".".join(encoded(json.dumps(part).encode()) for part in parts)
    der = subprocess.run(["openssl", "dgst", "-sha256", "-sign", key], input=signed.encode(), check=True,
                         capture_output=True).stdout
    # SEQUENCE { INTEGER r, INTEGER s }, each shorter than 128 bytes.
    r = der[4:4 + der[3]]
    s = der[6 + der[3]:]
    raw = b"".join(number.lstrip(b"\0").rjust(32, b"\0") for number in (r, s))
    return {"keys": [jwk]}, f"{signed}.{encoded(raw)}"


def tls(kind, extra):
    return {"name": "tls", "typed_config": {
        "@type": f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}TlsContext", **extra}}


def envoy_config(folder, ports, jwks):
    file = lambda name: {"filename": str(folder / "pki" / name)}
    jwt = {"@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
           "providers": {"bench": {"issuer": "https://issuer.test", "audiences": ["bench"],
                                   "local_jwks": {"inline_string": json.dumps(jwks)},
                                   "jwt_cache_config": {"jwt_cache_size": 1000}}},
           "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "bench"}}]}
    names = {"start_time": "%START_TIME%", "method": "%REQ(:METHOD)%", "path": "%PATH(NQ)%", "route": "%ROUTE_NAME%",
             "status": "%RESPONSE_CODE%", "duration_ms": "%DURATION%", "upstream": "%UPSTREAM_CLUSTER%",
             "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "request_id": "%REQ(X-REQUEST-ID)%"}
    access_log = {"name": "file", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
        "path": str(folder / "envoy-access.log"), "log_format": {"json_format": names}}}
    manager = {"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
                        ".HttpConnectionManager",
               "stat_prefix": "public", "access_log": [access_log],
               "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                   {"match": {"path": "/pay"}, "route": {"cluster": "nginx", "timeout": "5s"}}]}]},
               "http_filters": [{"name": "jwt", "typed_config": jwt},
                                {"name": "router", "typed_config": {
                                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}
    address = lambda port: {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    certificate = {"certificate_chain": file("edge.pem"), "private_key": file("edge.key")}
    return {
        "admin": {"address": address(ports["envoy_admin"])},
        "static_resources": {
            "listeners": [{"name": "public", "address": address(ports["envoy"]), "filter_chains": [{
                "transport_socket": tls("Downstream", {"common_tls_context": {"tls_certificates": [certificate]}}),
                "filters": [{"name": "http", "typed_config": manager}]}]}],
            "clusters": [{"name": "nginx", "connect_timeout": "1s", "load_assignment": {
                "cluster_name": "nginx", "endpoints": [{"lb_endpoints": [
                    {"endpoint": {"address": address(ports["upstream"])}}]}]},
                "transport_socket": tls("Upstream", {"sni": "txn-core.torana.internal", "common_tls_context": {
                    "validation_context": {"trusted_ca": file("internal-ca.pem")}}})}]}}


def cpu_s(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wrk(folder, port, token, seconds, pid):
    before = cpu_s(pid)
    out = subprocess.run(["wrk", "-t1", "-c32", f"-d{seconds}s", "--latency", "-s", folder / "post.lua", "-H",
                          f"Authorization: Bearer {token}", f"https://localhost:{port}/pay"], check=True,
                         capture_output=True, text=True).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        raise SystemExit(out)
    requests = int(re.search(r"(\d+) requests in", out)[1])
    median = re.search(r"50%\s+([\d.]+)(us|ms|s)", out)
    return {"p50_ms": float(median[1]) * {"us": 0.001, "ms": 1, "s": 1000}[median[2]],
            "requests/s": requests / seconds, "cpu_us": (cpu_s(pid) - before) / requests * 1e6}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    options = parser.parse_args()
    folder = ROOT / "target/clients/bench"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    subprocess.run([ROOT / "target/debug/certs", "init", folder / "pki"], check=True, stdout=subprocess.DEVNULL)
    jwks, token = key_and_token(folder)
    names = ["gateway", "gateway_admin", "envoy", "envoy_admin", "upstream"]
    ports = dict(zip(names, free_ports(len(names))))
    (folder / "jwks.json").write_text(json.dumps(jwks))
    (folder / "edge.yaml").write_text(POLICY.format(**ports))
    certificate = "ssl_certificate pki/txn-core.pem; ssl_certificate_key pki/txn-core.key"
    (folder / "nginx.conf").write_text(NGINX.format(listen=f"127.0.0.1:{ports['upstream']} ssl; {certificate}"))
    (folder / "envoy.json").write_text(json.dumps(envoy_config(folder, ports, jwks)))
    (folder / "post.lua").write_text(POST)
    with contextlib.ExitStack() as running:
        log = running.enter_context((folder / "processes.log").open("w"))

        def background(*command):
            process = subprocess.Popen([str(part) for part in command], cwd=folder, stdout=log, stderr=log)
            # nginx takes its workers with it only when it is asked to end. The gateway and Envoy have nothing to finish.
            stop = process.terminate if "nginx" in str(command[0]) else process.kill
            running.callback(lambda: (stop(), process.wait()))
            return process.pid

        background(shutil.which("nginx") or "/usr/sbin/nginx", "-p", folder, "-c", folder / "nginx.conf")
        pids = {
            "gateway": background(ROOT / "target/release/gateway", "serve", "edge.yaml", "--threads", "1"),
            "envoy": background(ROOT / "target/envoy/envoy", "-c", "envoy.json", "--concurrency", "1", "--log-level",
                                "warning", "--disable-hot-restart"),
        }
        until("the gateway is ready", lambda: answers_200(f"http://127.0.0.1:{ports['gateway_admin']}/readiness"))
        until("Envoy is ready", lambda: answers_200(f"http://127.0.0.1:{ports['envoy_admin']}/ready"))
        seen = {"gateway": [], "envoy": []}
        for number in range(options.rounds):
            for edge in seen:
                result = wrk(folder, ports[edge], token, options.seconds, pids[edge])
                seen[edge].append(result)
                print(f"round {number + 1}, {edge:8}", "  ".join(f"{name} {value:.2f}" for name, value in result.items()),
                      flush=True)
    for name in ("p50_ms", "requests/s", "cpu_us"):
        gateway, envoy = (sorted(result[name] for result in seen[edge])[options.rounds // 2] for edge in seen)
        print(f"{name}: gateway {gateway:.2f}, Envoy {envoy:.2f}, ratio {gateway / envoy:.2f}")


if __name__ == "__main__":
    main()
