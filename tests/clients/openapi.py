#!/usr/bin/python3
"""Holds the API's description against the edge that serves it.

    tests/clients/openapi.py                 the gateway
    tests/clients/openapi.py --edge envoy --checks schemathesis

It starts a stack of its own and ends it. Redocly lints `/openapi.json`. schemathesis sends requests that the
description allows and forbids, signed where they must be, and checks every response. Clients generated for Java,
Python and TypeScript complete a payment each and read two refusals.

Needs the built workspace (cargo build --workspace) and what `tests/run install` installs. It fetches schemathesis,
Redocly, TypeScript and the generator into target/clients, at the versions below.
"""

import argparse
import json
import os
import pathlib
import shutil
import ssl
import subprocess
import sys
import time
import urllib.request

from stack import ROOT, Failed, Stack, need, run

HERE = pathlib.Path(__file__).resolve().parent
WORK = ROOT / "target/clients"
PYTHON_PACKAGES = ["schemathesis==4.32.5", "cryptography==50.0.2", "urllib3==2.8.0", "python-dateutil==2.9.0.post0",
                   "pydantic==2.12.5"]
NODE_PACKAGES = ["@redocly/cli@2.12.0", "typescript@5.9.3", "@types/node@20.19.25"]
GENERATOR = "org.openapitools:openapi-generator-cli:7.25.0"
# Enough to reach every branch of the description; a run takes seconds.
EXAMPLES = 40
SEED = 20261201


def fetched(folder, wanted, fetch):
    """The folder with what `fetch` puts there; fetched again when other versions are wanted."""
    folder = WORK / folder
    mark = folder / "versions.json"
    if not mark.exists() or json.loads(mark.read_text()) != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        fetch(folder)
        mark.write_text(json.dumps(wanted))
    return folder


def python_packages():
    return fetched("python", PYTHON_PACKAGES, lambda folder: run(
        "pip", ["python3", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore",
                "--target", folder, *PYTHON_PACKAGES], timeout=300))


def node_packages():
    return fetched("node", NODE_PACKAGES, lambda folder: run(
        "npm", ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, *NODE_PACKAGES],
        timeout=300))


def generator():
    name, version = GENERATOR.split(":")[1:]
    folder = fetched("generator", GENERATOR, lambda folder: run(
        "mvn", ["mvn", "-q", "-B", "dependency:copy", f"-Dartifact={GENERATOR}", f"-DoutputDirectory={folder}"],
        timeout=300))
    return folder / f"{name}-{version}.jar"


def generate(document, language, folder, *options):
    shutil.rmtree(folder, ignore_errors=True)
    run(f"generating {language}", ["java", "-jar", generator(), "generate", "-g", language, "-i", document, "-o",
                                   folder, *options])


def redocly(_stack, document):
    out = subprocess.run([node_packages() / "node_modules/.bin/redocly", "lint", "--format=json", document],
                         capture_output=True, text=True, timeout=120, cwd=ROOT,
                         env=os.environ | {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"})
    need("Redocly did not run", "{" in out.stdout, out.stdout + out.stderr)
    found = json.loads(out.stdout[out.stdout.index("{"):])
    problems = [f"{problem['ruleId']}: {problem['message']}" for problem in found["problems"]]
    need("Redocly finds", not problems and out.returncode == 0, "\n".join(problems))


def schemathesis(stack, document):
    settings = {
        "PYTHONPATH": f"{python_packages()}:{HERE}",
        "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
        "TORANA_DEVICE_KEY": stack.device_key_file,
        "TORANA_PAYMENT": stack.payment,
    }
    # Over HTTP/1.1 Envoy itself refuses methods that it does not know, with 400.
    excluded = ["--exclude-checks", "unsupported_method"] if stack.edge == "envoy" else []
    # The WebSocket is no request and response; clients follow it in run.py.
    run("schemathesis", ["python3", "-m", "schemathesis.cli", "run", f"{stack.url}/openapi.json", "--tls-verify",
                         stack.ca, "--header", f"Authorization: Bearer {stack.token}", "--checks", "all",
                         "--exclude-operation-id", "events", "--max-examples", EXAMPLES, "--seed", SEED,
                         "--generation-database", "none", "--no-color", *excluded],
        cwd=WORK, timeout=300, env=os.environ | settings)


def java(stack, document):
    folder = WORK / "java"
    generate(document, "java", folder, "--library", "native")
    shutil.copy(HERE / "generated/Pay.java", folder / "src/main/java")
    run("mvn", ["mvn", "-q", "-B", "-DskipTests", "compile", "dependency:build-classpath",
                "-Dmdep.outputFile=target/classpath"], cwd=folder, timeout=300)
    classes = f"target/classes:{(folder / 'target/classpath').read_text().strip()}"
    run("Java", ["java", "-cp", classes, "Pay", stack.url, stack.ca, stack.token_file, stack.device_key_file], cwd=folder)


def python(stack, document):
    folder = WORK / "python-client"
    generate(document, "python", folder)
    run("Python", ["python3", HERE / "generated/pay.py", stack.url, stack.ca, stack.token_file, stack.device_key_file],
        env=os.environ | {"PYTHONPATH": f"{folder}:{python_packages()}:{HERE}"})


def typescript(stack, document):
    folder = WORK / "typescript"
    shutil.rmtree(folder, ignore_errors=True)
    generate(document, "typescript-fetch", folder / "client", "--additional-properties=importFileExtension=.js")
    shutil.copy(HERE / "generated/pay.ts", folder)
    (folder / "package.json").write_text('{ "type": "module" }')
    packages = node_packages() / "node_modules"
    run("tsc", [packages / ".bin/tsc", "--strict", "--target", "es2022", "--module", "nodenext", "--skipLibCheck",
                "--typeRoots", packages / "@types", "--types", "node", "--outDir", "out", "pay.ts"], cwd=folder)
    (folder / "out/package.json").write_text('{ "type": "module" }')
    run("TypeScript", ["node", "out/pay.js", stack.url, stack.token_file, stack.device_key_file], cwd=folder,
        env=os.environ | {"NODE_EXTRA_CA_CERTS": stack.ca})


CHECKS = {"redocly": redocly, "schemathesis": schemathesis, "java": java, "python": python, "typescript": typescript}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", choices=["gateway", "envoy"], default="gateway")
    parser.add_argument("--checks", nargs="+", choices=list(CHECKS), default=list(CHECKS), metavar="CHECK",
                        help=f"only these: {', '.join(CHECKS)}")
    options = parser.parse_args()
    failures = 0
    stack = Stack(options.edge, "embedded")
    try:
        stack.wait()
        document = WORK / "openapi.json"
        trust = ssl.create_default_context(cafile=stack.ca)
        with urllib.request.urlopen(f"{stack.url}/openapi.json", context=trust, timeout=30) as response:
            document.write_bytes(response.read())
        for name in options.checks:
            began = time.monotonic()
            result = "ok"
            try:
                CHECKS[name](stack, document)
            except (Failed, subprocess.TimeoutExpired, OSError) as error:
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
