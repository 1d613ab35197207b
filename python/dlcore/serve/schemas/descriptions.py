"""What each request field does, in one line: shown in /openapi.json and docs/api.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Where a field means another thing in one API, `Type.field` comes first.
DESCRIPTIONS: Mapping[str, str] = {
    "messages": "The conversation. Text content, or a list of parts; roles as in the OpenAI API.",
    "CompletionRequest.prompt": "Text, token ids, or a list of either (one completion each).",
    "model": "A served name. Left out: the server's model. Another name: 404.",
    "n": "Completions per prompt.",
    "temperature": "0 = always the most likely token. Default: as the model advises, or 1.",
    "top_p": "Sample from this share of the probability.",
    "top_k": "Sample from the k most likely tokens; 0 or -1 = all.",
    "min_p": "Drop tokens below this share of the best one's probability.",
    "seed": "The same seed gives the same text, whatever else is being served.",
    "presence_penalty": "Lowers tokens that were generated at all.",
    "frequency_penalty": "Lowers tokens by how often they were generated.",
    "repetition_penalty": "Divides the logits of tokens seen in prompt or output; 1 = off.",
    "stop": "One or several texts that end the answer; left out of it.",
    "stop_token_ids": "Token ids that end the answer.",
    "include_stop_str_in_output": "Keep the stop text in the answer.",
    "min_tokens": "No end before this many tokens.",
    "ignore_eos": "Go on after the end-of-sequence token.",
    "logit_bias": "Token id -> number added to its logit.",
    "allowed_token_ids": "Only these tokens may be generated.",
    "bad_words": "Texts that may not be generated.",
    "skip_special_tokens": "Leave special tokens out of the text. Default true.",
    "spaces_between_special_tokens": "Accepted; special tokens are written as they are.",
    "prompt_logprobs": "Log-probabilities of the prompt's tokens, this many each. Not with stream.",
    "response_format": "text, json_object, json_schema or structural_tag; a grammar that does not "
    "compile is a 400.",
    "structured_outputs": "One of json, json_object, regex, choice, grammar, structural_tag.",
    "stream": "Answer as server-sent events.",
    "stream_options": "include_usage: a last chunk with the usage. continuous_usage_stats: usage "
    "in every chunk.",
    "truncate_prompt_tokens": "Keep the last so many tokens of the prompt; -1 = what fits.",
    "add_special_tokens": "Add BOS and the like. Default: for text yes, for a chat template no.",
    "return_token_ids": "Add prompt_token_ids and token_ids to the answer.",
    "resume_token_ids": "One list a choice: tokens of this answer that another server streamed "
    "before it was lost (null: a finished choice). Only what follows is streamed. Needs stream.",
    "kv_transfer_params": "Hand-over between nodes (docs/disaggregation.md): do_remote_decode asks "
    "a prefill node for a ticket; a decode node takes the ticket with the same prompt.",
    "ticket": "kv_transfer_params.ticket of a prefill node's answer.",
    "do_remote_decode": "Compute the prompt and its first token, and keep the KV for another node.",
    "return_tokens_as_token_ids": "Write tokens in logprobs as `token_id:N`.",
    "priority": "Lower runs first, where the scheduler's policy is priority.",
    "cache_salt": "Prompts share cached prefixes only with requests of the same salt.",
    "request_id": "Becomes part of the answer's id.",
    "user": "Accepted for compatibility.",
    "CompletionRequest.max_tokens": "Longest answer; default 16. 0 with echo scores the prompt.",
    "max_tokens": "Longest answer, in tokens. Default: what the context leaves.",
    "max_completion_tokens": "As max_tokens, which it replaces.",
    "ChatRequest.logprobs": "Add log-probabilities of the answer's tokens.",
    "CompletionRequest.logprobs": "Log-probabilities of the tokens, this many alternatives each.",
    "top_logprobs": "Alternatives per position; needs logprobs.",
    "tools": "Functions the model may call.",
    "tool_choice": "none, auto, required, or one function by name (then constrained).",
    "parallel_tool_calls": "false: at most one call.",
    "ChatRequest.reasoning_effort": "Passed to the chat template; none turns thinking off.",
    "include_reasoning": "false: leave reasoning_content out.",
    "ChatRequest.echo": "With continue_final_message: begin with the message continued.",
    "CompletionRequest.echo": "Begin with the prompt (its logprobs too, where asked for).",
    "add_generation_prompt": "Open the assistant's turn. Default true.",
    "continue_final_message": "Leave the last message open, and go on with it.",
    "chat_template": "Refused unless the server was started with --trust-request-chat-template; "
    "sandboxed.",
    "chat_template_kwargs": "More variables for the chat template, e.g. enable_thinking.",
    "documents": "Passed to the chat template.",
    "suffix": "400: the models served do not fill in the middle.",
    "input": "Text or items: messages, calls, call outputs, reasoning.",
    "instructions": "A system message for this response only.",
    "previous_response_id": "Go on from a stored response of the same API key.",
    "max_output_tokens": "Longest answer, reasoning included.",
    "ResponsesRequest.reasoning": "effort is passed to the chat template; summary is not made.",
    "ResponsesRequest.text": "format: text, json_object or json_schema. verbosity is accepted.",
    "include": "`message.output_text.logprobs` adds logprobs; others are accepted.",
    "ResponsesRequest.metadata": "Kept and given back.",
    "BatchRequest.metadata": "Kept and given back.",
    "store": "Keep the response for retrieval. Default true; bounded (--max-stored-responses).",
    "background": "Answer at once and go on; retrieve or cancel it by its id.",
    "truncation": "auto: drop the beginning of a prompt that is too long.",
    "system": "The system prompt.",
    "thinking": "enabled or adaptive / disabled: passed to the chat template.",
    "stop_sequences": "Texts that end the answer.",
    "MessagesRequest.metadata": "user_id is accepted.",
    "TokenizeRequest.prompt": "The text.",
    "return_token_strs": "Add each token's text.",
    "tokens": "Token ids.",
    "input_file_id": "A file of lines: custom_id, method, url, body.",
    "endpoint": "Where each line is sent.",
    "completion_window": "Only 24h.",
}


def description(type_name: str, field: str) -> str | None:
    return DESCRIPTIONS.get(f"{type_name}.{field}") or DESCRIPTIONS.get(field)


def describe(components: Mapping[str, Any]) -> None:
    """Adds the descriptions to generated schemas of requests."""
    for name, schema in components.items():
        if not name.endswith("Request"):
            continue
        for field, form in schema.get("properties", {}).items():
            text = description(name, field)
            if text is not None:
                form.setdefault("description", text)
