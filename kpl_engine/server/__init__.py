"""`kpl-engine serve`: two thin doors (HTTP, gRPC) over one service, which batches images of all requests.

Import the leaf modules; nothing is loaded here.
"""

__all__: list[str] = []
