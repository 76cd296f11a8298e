"""An HTTP client of OpenAI-compatible servers."""
