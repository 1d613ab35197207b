"""Request and response bodies, one API per file; /openapi.json is generated from them."""
