"""What a model's text means: reasoning, content and tool calls, one format per file."""
