# pip install websockets; python3 client.py ws://127.0.0.1:8080/v1/ws "$TOKEN" dev/ana s-42
import json, random, sys, threading, time, uuid
from websockets.sync.client import connect
from websockets.exceptions import ConnectionClosed

url, token, client_id, session = sys.argv[1:5]
place, ws, stay_away = None, None, {1000, 1002, 1003, 1007, 1008, 1009, 4400, 4401, 4403, 4409}

def send(kind, payload):
    ws.send(json.dumps({"type": kind, "id": str(uuid.uuid4()), "session_id": session, "payload": payload}))

threading.Thread(target=lambda: [send("chat", line.rstrip()) for line in sys.stdin], daemon=True).start()
while True:
    try:
        with connect(url, subprotocols=["ringway.v1"]) as ws:
            send("rw.hello", {"client_id": client_id, "auth_token": token} | ({"resume": place} if place else {}))
            for message in map(json.loads, ws):
                print(json.dumps(message), flush=True)
                if message["type"] == "rw.welcome":
                    place = {"epoch": message["payload"]["epoch"], "seq": message["payload"]["start_seq"] - 1}
                elif seq := message.get("seq") or message["type"] == "rw.caught_up" and message["payload"]["seq"]:
                    place["seq"] = max(place["seq"], seq)
    except ConnectionClosed as closed:
        if closed.rcvd and closed.rcvd.code in stay_away:
            sys.exit(f"closed: {closed.rcvd}")
    except OSError as error:
        print(error, file=sys.stderr)
    time.sleep(random.uniform(0.5, 20))
