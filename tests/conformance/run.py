#!/usr/bin/env python3
"""Autobahn's WebSocket cases, run by kosoku against /v1/echo of a gateway that this script starts and stops.

    python3 -m venv target/conformance-venv
    target/conformance-venv/bin/pip install -r tests/conformance/requirements.txt
    target/conformance-venv/bin/python tests/conformance/run.py [--binary PATH] [--engine NAME] [--cases GLOB ...]

The exit code is 0 where every case passed, closed with the right code, and as many ran as there are. Rate limits do not
apply on /v1/echo; its message limit is 16 MiB, which the cases 9.* reach.
"""

import argparse
import asyncio
import collections
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

# All that kosoku 0.1.0 has: 301 of Autobahn's without compression (1.* to 10.*), 216 with it (12.* and 13.*).
CASES_EXPECTED = 517
START_SECONDS = 20
CASE_RUN_SECONDS = 1500
GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}
GOOD_CLOSE = {"OK", "INFORMATIONAL"}

CONFIG = """
[server]
listen = "127.0.0.1:0"
engine = "ENGINE"
shards = 1
pin = false
max_connections = 1000
[admin]
listen = "127.0.0.1:0"
[[auth.keys]]
kid = "conformance"
alg = "HS256"
file = "secret"
[limits]
connections_per_ip = 0
handshakes_per_ip_per_second = 0
handshakes_per_second = 0
half_open_per_ip = 0
[deflate]
enabled = true
min_bytes = 64
[diagnostics]
echo = true
log_format = "json"
"""


def run_cases(url, cases, output):
    """The child: runs the cases, writes the verdicts, and ends without the interpreter's own end, which may abort."""
    import kosoku

    async def run():
        try:
            return await kosoku.run_fuzzingclient(url, cases or None, None, 2)
        except kosoku.FailureError as failed:
            return failed.results

    verdicts = [
        {
            "case": result.case_id,
            "behavior": result.behavior.value,
            "close": result.behavior_close.value,
            "code": result.remote_close_code,
            "result": result.result,
        }
        for result in asyncio.run(run())
    ]
    temporary = output + ".part"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(verdicts, file)
    os.replace(temporary, output)
    sys.stdout.flush()
    os._exit(0)


def start_gateway(binary, engine, folder):
    """Starts the gateway; its process and its client port, read from the log line that announces it."""
    (folder / "ringway.toml").write_text(CONFIG.replace("ENGINE", engine))
    (folder / "secret").write_bytes(os.urandom(32).hex().encode())
    log = open(folder / "log", "w+", encoding="utf-8")
    gateway = subprocess.Popen(
        [binary, "serve", "--config", str(folder / "ringway.toml")], stdin=subprocess.DEVNULL, stderr=log
    )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        text = (folder / "log").read_text()
        found = re.search(r'"address":"127\.0\.0\.1:(\d+)"', text)
        if found:
            return gateway, int(found.group(1))
        if gateway.poll() is not None:
            sys.exit(f"the gateway did not start:\n{text}")
        time.sleep(0.05)
    gateway.kill()
    sys.exit(f"the gateway did not announce its address within {START_SECONDS} s:\n{text}")


def stop_gateway(gateway):
    """Twice the signal: a drain has nobody to wait for, and what hangs is stopped. True where it ended by itself, cleanly."""
    gateway.send_signal(signal.SIGTERM)
    try:
        return gateway.wait(timeout=40) == 0
    except subprocess.TimeoutExpired:
        gateway.kill()
        gateway.wait()
        return False


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--binary", default="target/release/ringway", help="the gateway to run")
    arguments.add_argument("--engine", default="auto", help="the gateway's server.engine: auto, ring, monoio or epoll")
    arguments.add_argument("--cases", nargs="*", default=[], help='case ids or globs, like "9.*"; all where left out')
    arguments.add_argument("--child", nargs=2, metavar=("URL", "FILE"), help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.child:
        run_cases(given.child[0], given.cases, given.child[1])

    # Told to end, it ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("conformance: told to end"))
    with tempfile.TemporaryDirectory(prefix="ringway-conformance-") as name:
        folder = pathlib.Path(name)
        gateway, port = start_gateway(given.binary, given.engine, folder)
        report = folder / "verdicts.json"
        command = [sys.executable, __file__, "--child", f"ws://127.0.0.1:{port}/v1/echo", str(report)]
        if given.cases:
            command += ["--cases", *given.cases]
        try:
            try:
                subprocess.run(command, stdin=subprocess.DEVNULL, timeout=CASE_RUN_SECONDS, check=False)
            except subprocess.TimeoutExpired:
                sys.exit(f"conformance: the cases took more than {CASE_RUN_SECONDS} s")
            alive = gateway.poll() is None
        finally:
            clean = stop_gateway(gateway)
        if not report.exists():
            sys.exit("conformance: the run ended without its verdicts")
        verdicts = json.loads(report.read_text())

    bad = [v for v in verdicts if v["behavior"] not in GOOD or v["close"] not in GOOD_CLOSE]
    for verdict in bad:
        print("FAILED {case}: {behavior}, close {close}, code {code}: {result}".format(**verdict))
    groups = collections.Counter(verdict["behavior"] for verdict in verdicts)
    closes = collections.Counter(verdict["close"] for verdict in verdicts)
    print(f"behaviour: {dict(groups)}; close: {dict(closes)}")
    print(f"conformance: {len(verdicts) - len(bad)} passed, {len(bad)} failed")
    if not alive or not clean:
        sys.exit("conformance: the gateway did not live to the end, or did not end cleanly")
    if not given.cases and len(verdicts) != CASES_EXPECTED:
        sys.exit(f"conformance: {len(verdicts)} cases ran, {CASES_EXPECTED} are expected")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
