"""`dlcore router`: one OpenAI-compatible address in front of many nodes."""
