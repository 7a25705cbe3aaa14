# pip install websockets; python3 hello.py ws://127.0.0.1:8080/v1/ws "$TOKEN" dev/ana s-42
import json, sys, threading, uuid
from websockets.sync.client import connect

url, token, client_id, session = sys.argv[1:5]

def send(kind, payload):
    ws.send(json.dumps({"type": kind, "id": str(uuid.uuid4()), "session_id": session, "payload": payload}))

def talk():
    for line in sys.stdin:
        send("chat", line.rstrip())

with connect(url, subprotocols=["ringway.v1"]) as ws:
    send("rw.hello", {"client_id": client_id, "auth_token": token})
    for message in map(json.loads, ws):
        print(json.dumps(message), flush=True)
        if message["type"] == "rw.welcome":
            threading.Thread(target=talk, daemon=True).start()
