"""The network front ends. `http.run_server` serves the OpenAI and Anthropic APIs."""
