"""One host as a process: `python -m tests.hosts.host FLAGS...` serves a tiny random model."""

import runpy
import sys
from pathlib import Path

from tests.hosts.tiny_model import FILES
from tests.serve.scripted import ByteTokenizer
from tpustream import runtime

if __name__ == "__main__":
    runtime.resolve_model = lambda name: FILES
    runtime.load_tokenizer = lambda path: ByteTokenizer()
    sys.argv[0] = str(Path("tpustream/serve/__main__.py"))
    runpy.run_module("tpustream.serve", run_name="__main__", alter_sys=True)
