"""OpenAI's chat API over HTTP, for an engine. Needs the extra `serve`."""
