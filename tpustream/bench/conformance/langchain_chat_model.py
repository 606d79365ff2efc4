"""The class that langchain-tests wants: ChatOpenAI at the server of the environment.

Run by `conformance.langchain` with pytest; TPUSTREAM_URL ends with /v1.
"""

import os

from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestServedChatModel(ChatModelIntegrationTests):
    """A model of text alone, without tools or constrained output."""

    has_tool_calling = False
    has_structured_output = False
    model_override_value = os.environ["TPUSTREAM_MODEL"]

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        """The client under test."""
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict:
        """How to reach the server."""
        return {
            "model": os.environ["TPUSTREAM_MODEL"],
            "base_url": os.environ["TPUSTREAM_URL"],
            "api_key": "none",
            "temperature": 0,
            "max_tokens": 64,
            "stream_usage": True,
        }
