"""Output that follows a JSON schema, a regex, a grammar or a choice (needs xgrammar).

`GrammarService` is what an engine session uses: it compiles a request's `StructuredOutputs`
and keeps a `_core.TokenConstraint` supplied with masks while the request runs.
"""
