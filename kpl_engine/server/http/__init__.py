"""The HTTP door: protocol v2, `/v1`, the page. Import the leaf modules; nothing is loaded here."""

__all__: list[str] = []
