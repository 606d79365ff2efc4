"""Which of llama.cpp's server cases say nothing about this server, and why."""

MODEL = "compares the text with what one tiny model says"
BUILD = "wants llama.cpp's build number as the system fingerprint"
ROLE = "wants a first chunk with the role alone, which would flatter the time to the first token"
COMPLETION = "asks /completion, llama.cpp's own dialect"
OWN_ROUTE = "asks for a route of llama.cpp's own"
OWN_FIELD = "reads fields of llama.cpp's own"
CONSTRAINED = "constrained output is refused by name"
PREFILL = "a last message that the model continues is refused by name (continue_final_message)"
WORDING = "wants llama.cpp's words where OpenAI has its own"
MIXED = "inputs of mixed forms, and empty ones, are refused, as OpenAI does"
COUNTS = "counts the tokens of another tokenizer"

_CHAT, _TEXT, _EMBED = "test_chat_completion", "test_completion", "test_embedding"
_FORMAT = f"{_CHAT}::test_completion_with_response_format"
_INPUT = f"{_EMBED}::test_embedding_mixed_input"

NOT_APPLICABLE = {
    "test_basic::test_server_multiple_addresses": "starts servers of its own",
    "test_basic::test_server_props": OWN_ROUTE,
    "test_basic::test_server_models": "wants one name; this server has all that the suite asks for",
    "test_basic::test_server_slots": OWN_ROUTE,
    "test_basic::test_load_split_model": "loads another model",
    "test_basic::test_no_ui": "there is no web page at /",
    "test_basic::test_server_model_aliases_and_tags": "needs its own names for the model",
    f"{_CHAT}::test_chat_completion": BUILD,
    f"{_CHAT}::test_chat_completion_cached_tokens": COUNTS,
    f"{_CHAT}::test_chat_completion_stream": ROLE,
    f"{_CHAT}::test_chat_completion_with_openai_library": BUILD,
    f"{_CHAT}::test_chat_template": OWN_FIELD,
    f"{_CHAT}::test_chat_template_assistant_prefill": OWN_FIELD,
    f"{_CHAT}::test_chat_template_continue_final_message_vllm_compat": PREFILL,
    f"{_CHAT}::test_apply_chat_template": OWN_ROUTE,
    f'{_FORMAT}[response_format0-6-"42"]': CONSTRAINED,
    f"{_FORMAT}[response_format1-10-[ -3000 ]]": CONSTRAINED,
    f'{_FORMAT}[response_format2-10-"foooooo"]': CONSTRAINED,
    f"{_FORMAT}[response_format3-10-(\\\\{{|John)+]": CONSTRAINED,
    f"{_CHAT}::test_completion_with_json_schema": CONSTRAINED,
    f"{_CHAT}::test_completion_with_grammar": CONSTRAINED,
    f"{_CHAT}::test_invalid_chat_completion_req[messages7]": "two answers in a row are allowed",
    f"{_CHAT}::test_chat_completion_with_timings_per_token": ROLE,
    f"{_CHAT}::test_logprobs_stream": ROLE,
    f"{_CHAT}::test_logit_bias": f"biases pieces of text instead of tokens; {OWN_ROUTE}",
    f"{_CHAT}::test_context_size_exceeded": WORDING,
    f"{_CHAT}::test_context_size_exceeded_stream": WORDING,
    f"{_CHAT}::test_return_progress": "progress of prefill in llama.cpp's form",
    f"{_CHAT}::test_chat_completions_token_count": OWN_ROUTE,
    f"{_CHAT}::test_verbose_debug": OWN_FIELD,
    "test_compat_oai_responses::test_responses_with_openai_library": MODEL,
    "test_compat_oai_responses::test_responses_stream_with_llama_telemetry": OWN_FIELD,
    f"{_TEXT}::test_completion_with_openai_library": BUILD,
    f"{_TEXT}::test_completion_stream_with_openai_library": MODEL,
    f"{_TEXT}::test_completion_stream_with_openai_library_stops": MODEL,
    f"{_INPUT}[-False]": MIXED,
    f"{_INPUT}[input3-False]": MIXED,
    f"{_INPUT}[input5-True]": MIXED,
    f"{_INPUT}[input7-True]": MIXED,
    f"{_INPUT}[input8-False]": MIXED,
    f"{_INPUT}[input9-False]": MIXED,
    f"{_INPUT}[input10-True]": MIXED,
    f"{_EMBED}::test_embedding_content_text_same_as_string": MIXED,
    f"{_EMBED}::test_embedding_pooling_none": "pooling is always the mean",
    f"{_EMBED}::test_embedding_pooling_none_oai": "pooling is always the mean",
    f"{_EMBED}::test_embedding_error_prompt_too_long": WORDING,
    f"{_EMBED}::test_embedding_usage_single": COUNTS,
    f"{_EMBED}::test_embedding_usage_multiple": COUNTS,
}

# Cases that would pass or fail whatever this server does, and whole files that are not about it.
NOT_RUN = {
    f"unit/test_completion.py::{name}": COMPLETION
    for name in (
        "test_completion[",  # pytest leaves out whatever begins like this
        "test_completion_stream[",
        "test_completion_stream_vs_non_stream",
        "test_consistent_result_same_seed",
        "test_different_result_different_seed",
        "test_consistent_result_different_batch_size",
        "test_cache_vs_nocache_prompt",
        "test_nocache_long_input_prompt",
        "test_json_prompt_no_mtmd",
        "test_json_prompt_mtm_error_when_not_supported",
        "test_completion_with_tokens_input",
        "test_completion_parallel_slots",
        "test_completion_unified",
        "test_completion_response_fields",
        "test_n_probs",
        "test_n_probs_stream",
        "test_n_probs_post_sampling",
        "test_n_probs_post_backend_sampling",
        "test_logit_bias",
        "test_cancel_request",
        "test_completion_prompt_cache",
    )
} | {
    "unit/test_compat_anthropic.py": "another vendor's API",
    "unit/test_compat_gcp.py": "another vendor's API",
    "unit/test_ctx_shift.py": COMPLETION,
    "unit/test_ignore_eos.py": COMPLETION,
    "unit/test_infill.py": "/infill is not served",
    "unit/test_kv_keep_only_active.py": "options of llama.cpp's cache",
    "unit/test_lora.py": "adapters are not served",
    "unit/test_mcp_servers.py": "tools of the server's own",
    "unit/test_metrics.py": "llama.cpp's names of metrics and timings",
    "unit/test_proxy.py": "a proxy of the server's own",
    "unit/test_rerank.py": "/rerank is not served",
    "unit/test_router.py": "several models in one server",
    "unit/test_security.py": "servers started with a key, origins or files; ours: tests/serve/test_access.py",
    "unit/test_sleep.py": "unloading the model",
    "unit/test_slot_save.py": "slots saved to files",
    "unit/test_speculative.py": "draft models",
    "unit/test_stream.py": "streams resumed in llama.cpp's form",
    "unit/test_template.py": "/apply-template is not served",
    "unit/test_tokenize.py": "/tokenize and /detokenize with llama.cpp's fields; ours are vLLM's",
    "unit/test_tool_call.py": "tools are refused by name",
    "unit/test_tools_builtin.py": "tools of the server's own",
    "unit/test_vision_api.py": "images are refused by name",
}  # fmt: skip
