"""Stream an answer over gRPC (extra `grpc`): grpc_client.py 127.0.0.1:8001 QUESTION"""

import sys

import grpc

from tpustream.serve.live.stream_pb2 import ChatMessage, Start
from tpustream.serve.live.stream_pb2_grpc import StreamStub

address, question = sys.argv[1:]
messages = [ChatMessage(role="user", content=question)]
with grpc.insecure_channel(address) as channel:
    try:
        for message in StreamStub(channel).Generate(Start(stream="a", messages=messages, temperature=0)):
            if message.HasField("text"):
                print(message.text.text, end="", flush=True)
    except grpc.RpcError as error:
        sys.exit(error.details())
print()
