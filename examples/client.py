# pip install websockets; python3 client.py ws://127.0.0.1:8080/v1/ws "$TOKEN" dev/ana s-42
import contextlib, json, random, sys, threading, time, uuid
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

url, token, client_id, session = sys.argv[1:5]
place, live, unacked = None, None, {}  # where to go on, the open connection, what is not acknowledged yet

def envelope(kind, payload):
    id = str(uuid.uuid4())
    return id, json.dumps({"type": kind, "id": id, "session_id": session, "payload": payload})

def push():  # one at a time keeps the order; the same id again: what had arrived is not delivered twice
    with contextlib.suppress(AttributeError, ConnectionClosed, StopIteration):
        live.send(next(iter(unacked.values())))

def say(line):
    id, unacked[id] = envelope("chat", line.rstrip())
    if len(unacked) == 1:
        push()

threading.Thread(target=lambda: [say(line) for line in sys.stdin], daemon=True).start()
while True:
    try:
        with connect(url, subprotocols=["ringway.v1"]) as ws:
            ws.send(envelope("rw.hello", {"client_id": client_id, "auth_token": token, "resume": place})[1])
            for message in map(json.loads, ws):
                print(json.dumps(message), flush=True)
                kind, payload = message["type"], message["payload"]
                if kind == "rw.welcome":
                    place = {"epoch": payload["epoch"], "seq": payload["start_seq"] - 1}
                elif kind == "rw.caught_up":
                    place["seq"], live = max(place["seq"], payload["seq"]), ws
                    push()
                elif "seq" in message:
                    place["seq"] = max(place["seq"], message["seq"])
                elif kind in ("rw.ack", "rw.error"):
                    if payload.get("retryable"):
                        time.sleep((payload["retry_after_ms"] or 1000) / 1000)
                    else:
                        unacked.pop(message["id"], None)
                    push()
    except ConnectionClosed as closed:
        if closed.rcvd and closed.rcvd.code in (1000, 1002, 1003, 1007, 1008, 1009, 4400, 4401, 4403, 4409):
            sys.exit(f"closed: {closed.rcvd}")
    except OSError as error:
        print(error, file=sys.stderr)
    live = None
    time.sleep(random.uniform(0.5, 20))
