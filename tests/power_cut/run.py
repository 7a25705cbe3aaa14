#!/usr/bin/env python3
"""Cuts the power under a gateway whose log is `synced`, again and again, and accounts for what it acknowledged.

    python3 -m venv target/power-cut-venv
    target/power-cut-venv/bin/pip install -r tests/power_cut/requirements.txt
    target/power-cut-venv/bin/python tests/power_cut/run.py [--binary PATH] [--rounds N] [--seed S]

The log lies on a file system that loses what was not synced (filesystem.py). Clients say numbered messages and hear each other's; a
round ends with SIGKILL for the gateway and a power cut for its disk, and the next one recovers. Then one run each with an fsync that
fails and with a disk that lies. Exit code 0: everything acknowledged is there once, in order and in its place. 1: it is not; what is
wrong, and the seed. Where there is no FUSE, or no right to mount, it says so and the exit code is 0.
"""

import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

import websockets
from websockets.asyncio.client import connect

SECRET = b"a secret of thirty-two bytes, ok"
SESSIONS = 6
IN_FLIGHT = 64
START_SECONDS = 20
QUIET_SECONDS = 10

CONFIG = """
[server]
listen = "127.0.0.1:0"
shards = 2
pin = false
max_connections = 1000
[admin]
listen = "127.0.0.1:0"
[[auth.keys]]
kid = "power"
alg = "HS256"
file = "secret"
[limits]
messages_per_second = 0
bytes_per_second = 0
connections_per_user = 0
half_open_per_ip = 0
handshakes_per_ip_per_second = 0
[session]
history_messages = 1000000
[log]
dir = "{log}"
durability = "synced"
segment_bytes = 2097152
memory_bytes = 8388608
[diagnostics]
log_format = "json"
"""


class Wrong(Exception):
    """A broken promise."""


def expect(promise, what):
    if not promise:
        raise Wrong(what)


class Machine:
    """The file system and the gateway on it: everything that a power cut ends."""

    def __init__(self, binary, folder, chance):
        self.binary, self.folder, self.chance = binary, folder, chance
        self.mount, self.platter = folder / "mnt", folder / "platter"
        self.mount.mkdir()
        (folder / "secret").write_bytes(SECRET)
        (folder / "ringway.toml").write_text(CONFIG.format(log=self.mount / "log"))
        self.log = folder / "gateway.log"
        self.disk = self.gateway = None

    def power_on(self):
        command = [sys.executable, str(pathlib.Path(__file__).with_name("filesystem.py")), str(self.platter), str(self.mount)]
        command.append(self.chance.choice(["allocates", "does-not"]))
        with open(self.folder / "filesystem.log", "a", encoding="utf-8") as log:
            self.disk = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not os.path.ismount(self.mount):
            if self.disk.poll() is not None or time.monotonic() > deadline:
                raise OSError((self.folder / "filesystem.log").read_text().strip() or "the file system did not mount")
            time.sleep(0.01)

    def start(self):
        self.log.write_text("")
        with open(self.log, "w", encoding="utf-8") as log:
            command = [self.binary, "serve", "--config", str(self.folder / "ringway.toml")]
            self.gateway = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    async def serving(self):
        """Waits until the gateway listens; its ports."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            text = self.log.read_text()
            found = re.search(r'"address":"127\.0\.0\.1:(\d+)".*?"admin":"127\.0\.0\.1:(\d+)"', text)
            if found:
                return int(found.group(1)), int(found.group(2))
            expect(self.gateway.poll() is None, f"the gateway did not start:\n{text}")
            expect(time.monotonic() < deadline, f"the gateway does not listen:\n{text}")
            await asyncio.sleep(0.01)

    def ask_disk(self, command):
        try:
            os.stat(self.mount / f".{command}")
        except OSError:
            pass

    def cut(self, keeps_some):
        """The process dies, and all that the disk did not have."""
        self.gateway.kill()
        self.gateway.wait()
        if keeps_some:
            self.ask_disk(f"cut.{self.chance.random()}")
        self.disk.kill()
        self.disk.wait()
        self.unmount()

    def unmount(self):
        command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
        subprocess.run([*command, str(self.mount)], check=False, stderr=subprocess.DEVNULL)

    def off(self):
        for process in (self.gateway, self.disk):
            if process and process.poll() is None:
                process.kill()
                process.wait()
        self.unmount()

    def verify(self):
        """The tools' word on the log, as it is."""
        command = [self.binary, "log", "verify", str(self.mount / "log")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        expect(done.returncode == 0, f"log verify: {done.stdout}{done.stderr}")


def token(client):
    def part(value):
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    now = int(time.time())
    claims = {"sub": client, "sid": ["*"], "iat": now, "nbf": now - 5, "exp": now + 3600}
    signed = part(json.dumps({"alg": "HS256", "typ": "JWT", "kid": "power"}).encode()) + b"." + part(json.dumps(claims).encode())
    return (signed + b"." + part(hmac.new(SECRET, signed, hashlib.sha256).digest())).decode()


async def enter(port, client, session, **keys):
    """A connection whose hello was answered: it, and the welcome."""
    socket = await connect(f"ws://127.0.0.1:{port}/v1/ws", subprotocols=["ringway.v1"], compression=None, max_queue=None)
    payload = {"client_id": client, "auth_token": token(client), "create": True, **keys}
    await socket.send(json.dumps({"type": "rw.hello", "id": "hello", "session_id": session, "payload": payload}))
    welcome = json.loads(await socket.recv())
    expect(welcome["type"] == "rw.welcome", f"{client} in {session}: {welcome}")
    return socket, welcome["payload"]


class Session:
    """One session, its writer and its reader, through all power cuts."""

    def __init__(self, number, chance):
        self.name, self.chance = f"s{number}", chance
        self.said = 0
        self.unacked = {}
        self.acked = {}
        self.refused = 0
        self.heard = []
        self.seq = 0
        self.epoch = None

    def text(self, number, pad):
        payload = {"n": number, "pad": "x" * pad}
        return json.dumps({"type": "chat", "id": f"m{number}", "session_id": self.name, "payload": payload})

    async def write(self, port, keep_on):
        """Says what was not acknowledged once more, then more, while `keep_on()`, until the connection ends or all is answered."""
        socket, _ = await enter(port, "writer", self.name, start="head")
        if self.acked:
            last = max(self.acked)
            await socket.send(self.text(last, self.acked[last][1]))
        for number, pad in sorted(self.unacked.items()):
            await socket.send(self.text(number, pad))
        while keep_on() or self.unacked:
            while keep_on() and len(self.unacked) < IN_FLIGHT:
                self.unacked[self.said] = self.chance.choice([5, 100, 1500, 6000])
                self.said += 1
                await socket.send(self.text(self.said - 1, self.unacked[self.said - 1]))
            refused = self.refused
            self.answered(json.loads(await asyncio.wait_for(socket.recv(), QUIET_SECONDS)))
            if self.refused > refused:
                await asyncio.sleep(0.01)
        await socket.close()

    def answered(self, answer):
        number = int(answer["id"][1:]) if re.fullmatch(r"m\d+", answer["id"]) else None
        if answer["type"] == "rw.error" and answer["payload"]["code"] in ("limit.disk", "limit.backpressure"):
            self.unacked.pop(number, None)
            self.refused += 1
        elif answer["type"] == "rw.ack":
            seq, again = answer["payload"]["seq"], answer["payload"].get("duplicate", False)
            if number in self.acked:
                expect((self.acked[number][0], True) == (seq, again), f"{self.name}: m{number} was {self.acked[number]}: {answer}")
            else:
                self.acked[number] = (seq, self.unacked.pop(number))
        else:
            expect(answer["type"] in ("rw.caught_up", "rw.goaway"), f"{self.name}: {answer}")

    async def read(self, port, entered):
        """Goes on from where it was, until the connection ends."""
        resume = {"resume": {"epoch": self.epoch, "seq": self.seq}} if self.epoch else {"start": "oldest"}
        socket, welcome = await enter(port, "reader", self.name, **resume)
        kept = welcome.get("recovered", True) and welcome.get("rewound_to") is None
        expect(kept, f"{self.name}: the reader was at {self.seq} and is told {welcome}")
        self.epoch = welcome["epoch"]
        entered.set()
        while True:
            message = json.loads(await socket.recv())
            if message["type"] == "chat":
                expect(message["seq"] > self.seq, f"{self.name}: {message['seq']} comes behind {self.seq}")
                self.seq = message["seq"]
                self.heard.append((message["payload"]["n"], message["seq"]))
            elif message["type"] == "rw.gap":
                raise Wrong(f"{self.name}: {message}")

    def missing(self):
        """What was acknowledged and has not been heard."""
        return set(self.acked) - {number for number, _ in self.heard}

    def check(self):
        """All that was acknowledged was heard, in its place; nothing twice, and in the order in which it was said."""
        check(self.name, self.heard, self.acked)

    async def audit(self, port, acked):
        """A newcomer reads everything from the oldest: what the log holds, whoever was told what."""
        socket, _ = await enter(port, f"auditor-{self.chance.random()}", self.name, start="oldest")
        found = []
        while (message := json.loads(await asyncio.wait_for(socket.recv(), QUIET_SECONDS)))["type"] != "rw.caught_up":
            expect(message["type"] != "rw.gap", f"{self.name}: {message}")
            if message["type"] == "chat":
                found.append((message["payload"]["n"], message["seq"]))
        await socket.close()
        check(f"{self.name}, from the oldest", found, acked)
        return found


def check(name, heard, acked):
    numbers = [number for number, _ in heard]
    expect(numbers == sorted(set(numbers)), f"{name}: heard in this order, or twice: {numbers}")
    places = dict(heard)
    lost = [number for number in acked if number not in places]
    expect(not lost, f"{name}: acknowledged and gone: {lost[:20]}, {len(lost)} in all")
    moved = [(number, seq, places[number]) for number, (seq, _) in acked.items() if places[number] != seq]
    expect(not moved, f"{name}: acknowledged at another place: {moved[:20]}")


ENDS = (websockets.ConnectionClosed, OSError, EOFError, websockets.InvalidHandshake, asyncio.TimeoutError)


async def until_cut(task):
    """Runs to the end of the connection, which is no news."""
    try:
        await task
    except ENDS:
        pass


async def load(machine, sessions, port, keep_on):
    """Readers and writers of all sessions; the tasks."""
    tasks = []
    for session in sessions:
        entered = asyncio.Event()
        tasks.append(asyncio.create_task(until_cut(session.read(port, entered))))
        waiting = asyncio.create_task(entered.wait())
        await asyncio.wait([tasks[-1], waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if tasks[-1].done() and tasks[-1].exception():
            raise tasks[-1].exception()
        tasks.append(asyncio.create_task(until_cut(session.write(port, keep_on))))
    return tasks


async def cut_off(machine, tasks, keeps_some):
    machine.cut(keeps_some)
    for done in await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30):
        if isinstance(done, Exception):
            raise done


async def settle(machine, sessions):
    """A start after which nobody says anything new: all is answered, all that was acknowledged is heard, the log is whole."""
    machine.start()
    port, _ = await machine.serving()
    tasks = await load(machine, sessions, port, lambda: False)
    deadline = time.monotonic() + 30
    while any(session.unacked or session.missing() for session in sessions) and time.monotonic() < deadline:
        for task in tasks:
            if task.done() and task.exception():
                raise task.exception()
        await asyncio.sleep(0.02)
    for session in sessions:
        session.check()
        await session.audit(port, session.acked)
    machine.verify()
    return tasks


async def rounds(machine, chance, count):
    sessions = [Session(number, chance) for number in range(SESSIONS)]
    recoveries_cut = 0
    for number in range(count):
        machine.power_on()
        machine.start()
        keeps_some = chance.random() < 0.7
        if number > 0 and chance.random() < 0.2:
            # In the middle of a recovery, or of the first steps after it.
            await asyncio.sleep(chance.uniform(0, 0.15))
            await cut_off(machine, [], keeps_some)
            recoveries_cut += 1
            continue
        port, _ = await machine.serving()
        tasks = await load(machine, sessions, port, lambda: True)
        await asyncio.sleep(chance.uniform(0.05, 1.0))
        await cut_off(machine, tasks, keeps_some)
        for session in sessions:
            heard = dict(session.heard)
            check(session.name, session.heard, {n: at for n, at in session.acked.items() if n in heard})
    machine.power_on()
    tasks = await settle(machine, sessions)
    await cut_off(machine, tasks, False)
    acked = sum(len(session.acked) for session in sessions)
    print(f"power cuts: {count}, {recoveries_cut} of them within a start; {acked} messages acknowledged, all there once, in order")
    expect(acked > count * 10, "hardly anything was acknowledged: the run says nothing")


async def one_failing_sync(machine, chance):
    # So many that each shard is home to some: the one that fails has to refuse somebody.
    sessions = [Session(number, chance) for number in range(2 * SESSIONS)]
    machine.power_on()
    machine.start()
    port, admin = await machine.serving()
    tasks = await load(machine, sessions, port, lambda: True)
    await asyncio.sleep(0.5)
    machine.ask_disk("eio")
    deadline = time.monotonic() + 10
    while not (shard := re.search(r'"shard":(\d+)[^\n]*could not be synced|could not be synced[^\n]*"shard":(\d+)', machine.log.read_text())):
        expect(time.monotonic() < deadline, f"the failed fsync shows nowhere:\n{machine.log.read_text()}")
        await asyncio.sleep(0.005)
    failed = int(shard.group(1) or shard.group(2))
    # What was answered before the failure may still be on its way, for as long as this client is slow; then it is over for those of the
    # shard and goes on for the others.
    deadline = time.monotonic() + 20
    while True:
        before = [len(session.acked) for session in sessions]
        await asyncio.sleep(1.0)
        after = [len(session.acked) for session in sessions]
        went_on = [now > then for then, now in zip(before, after)]
        refused = [session.refused > 0 for session in sessions]
        if refused == [not went for went in went_on] and any(refused):
            break
        what = f"those of shard {failed} are acknowledged behind a failed fsync, or others are not: {before}, {after}, {refused}"
        expect(time.monotonic() < deadline, what)
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics") as answer:
        metrics = answer.read().decode()
    expect(f'ringway_log_failed{{shard="{failed}"}} 1' in metrics, "ringway_log_failed does not say so")
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/healthz") as answer:
        health = answer.read().decode()
    expect(health.startswith(f"degraded: the log of shard {failed} "), f"/healthz says {health}")
    await cut_off(machine, tasks, False)
    for session in sessions:
        session.unacked.clear()
    machine.power_on()
    tasks = await settle(machine, sessions)
    await cut_off(machine, tasks, False)
    print(f"a failed fsync: shard {failed} acknowledged nothing more, said so, and had all that it had acknowledged after the restart")


async def a_disk_that_lies(machine, chance):
    sessions = [Session(number, chance) for number in range(SESSIONS)]
    machine.power_on()
    machine.start()
    port, _ = await machine.serving()
    lying = False
    tasks = await load(machine, sessions, port, lambda: not lying)
    await asyncio.sleep(0.5)
    lying = True
    deadline = time.monotonic() + 10
    while any(session.unacked for session in sessions) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    honest = [dict(session.acked) for session in sessions]
    # What nobody waits for is synced within a second, too.
    await asyncio.sleep(1.2)
    machine.ask_disk("lie")
    said = [asyncio.create_task(until_cut(session.write(port, lambda: True))) for session in sessions]
    await asyncio.sleep(0.5)
    await cut_off(machine, [*tasks, *said], False)
    lost = sum(len(session.acked) for session in sessions) - sum(map(len, honest))
    machine.power_on()
    machine.start()
    port, _ = await machine.serving()
    for session, acked in zip(sessions, honest):
        found = await session.audit(port, acked)
        expect([number for number, _ in found] == list(range(len(found))), f"{session.name} has holes: {found}")
    machine.verify()
    machine.off()
    expect(lost > 0, "nothing was acknowledged on a lie: the run says nothing")
    print(f"a disk that lies: {lost} acknowledged on a lie were lost, everything before is there and whole")


async def guarded(part, machine, chance):
    """Ends what it began, whatever happens."""
    try:
        await part(machine, chance)
    finally:
        machine.off()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)


def may_mount():
    """Why there can be no FUSE file system here, or None."""
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse"
    if os.geteuid() != 0 and not shutil.which("fusermount3"):
        return "neither root nor fusermount3 is there"
    return None


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--binary", default="target/release/ringway", help="the gateway to run")
    arguments.add_argument("--rounds", type=int, default=50, help="power cuts")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--keep", action="store_true", help="keep the files of a run that failed")
    given = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("power cut: told to end"))
    if why := may_mount():
        print(f"skipped: power cuts need FUSE, and {why}")
        return
    # In a mount namespace of its own where that is allowed: no mount outlives it.
    if os.geteuid() == 0 and not os.environ.get("RINGWAY_POWER_CUT_INSIDE") and shutil.which("unshare"):
        if subprocess.run(["unshare", "-m", "true"], check=False, stderr=subprocess.DEVNULL).returncode == 0:
            os.environ["RINGWAY_POWER_CUT_INSIDE"] = "1"
            os.execvp("unshare", ["unshare", "-m", "--propagation", "private", sys.executable, *sys.argv])
    for name, part in (
        ("rounds", lambda machine, chance: rounds(machine, chance, given.rounds)),
        ("eio", one_failing_sync),
        ("lie", a_disk_that_lies),
    ):
        folder = pathlib.Path(tempfile.mkdtemp(prefix="ringway-power-cut-"))
        chance = random.Random(f"{given.seed} {name}")
        machine = Machine(given.binary, folder, chance)
        failed = True
        try:
            try:
                machine.power_on()
            except OSError as error:
                print(f"skipped: no FUSE file system can be mounted: {error}")
                return
            machine.off()
            asyncio.run(guarded(part, machine, chance))
            failed = False
        except Wrong as wrong:
            sys.exit(f"power cut ({name}, seed {given.seed}): {wrong}\nthe gateway's last words:\n{machine.log.read_text()[-3000:]}")
        finally:
            machine.off()
            if failed and given.keep:
                print(f"kept: {folder}")
            else:
                shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
