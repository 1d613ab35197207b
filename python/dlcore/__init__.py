"""dlcore: an LLM inference engine with a C++ runtime and thin Python bindings."""
