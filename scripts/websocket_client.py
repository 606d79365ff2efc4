"""Stream an answer, 16 tokens at a time: websocket_client.py ws://127.0.0.1:8000/v1/stream QUESTION"""

import json
import sys

from websockets.sync.client import connect

url, question = sys.argv[1:]
start = {"type": "start", "messages": [{"role": "user", "content": question}], "temperature": 0}
with connect(url) as socket:
    socket.send(json.dumps({**start, "stream": "a", "credits": 16}))
    for frame in socket:
        message = json.loads(frame)
        if message["type"] == "text":
            print(message["text"], end="", flush=True)
        elif message["type"] == "paused":
            socket.send(json.dumps({"type": "grant", "stream": "a", "tokens": 16}))
        elif message["type"] in ("ended", "error"):
            print(message.get("error", {}).get("message", ""))
            break
