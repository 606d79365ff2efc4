"""Fields that clients know and this server does not honour: refused by name, never ignored.

A field is refused only where its value would have an effect; its default values pass. The names are
OpenAI's, and those of vLLM, SGLang and llama.cpp that change what is generated.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from tpustream.core.errors import InvalidRequest

SAMPLING: Mapping[str, Sequence[Any]] = {
    "allowed_token_ids": ((),),
    "bad_words": ((),),
    "ebnf": (),
    "grammar": ("",),
    "guided_choice": ((),),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "json_schema": ({},),
    "length_penalty": (1.0,),
    "logits_processors": ((),),
    "min_tokens": (0,),
    "mirostat": (0,),
    "prompt_logprobs": (False, 0),
    "regex": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "structured_outputs": ({},),
    "truncate_prompt_tokens": (),
    "typical_p": (1.0,),
    "use_beam_search": (False,),
}

CHAT: Mapping[str, Sequence[Any]] = {
    **SAMPLING,
    "add_generation_prompt": (True,),
    "audio": (),
    "chat_template": (),
    "continue_final_message": (False,),
    "documents": ((),),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ((),),
    "modalities": (("text",),),
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none",),
    "tools": ((),),
    "verbosity": ("medium",),
    "web_search_options": (),
}

COMPLETION: Mapping[str, Sequence[Any]] = {
    **SAMPLING,
    "response_format": ({"type": "text"},),
    "suffix": ("",),
}

MESSAGE: Mapping[str, Sequence[Any]] = {
    "audio": (),
    "function_call": (),
    "refusal": ("",),
    "tool_call_id": (),
    "tool_calls": ((),),
}

STREAM_OPTIONS: Mapping[str, Sequence[Any]] = {"include_obfuscation": (False,)}


def refuse(model: BaseModel, table: Mapping[str, Sequence[Any]], where: str = "") -> None:
    """Raise InvalidRequest for the first field of `model` that `table` does not let pass.

    `table` maps a field to the values without effect; None is always one. `where` goes before the
    field's name in the message.
    """
    for field, value in (model.model_extra or {}).items():
        harmless = table.get(field)
        if harmless is None or value is None:
            continue
        comparable = tuple(value) if isinstance(value, list) else value
        if not any(comparable == passing for passing in harmless):
            path = f"{where}{field}"
            raise InvalidRequest(
                f"{path}: this server does not support this field", param=path, code="unsupported_parameter"
            )
