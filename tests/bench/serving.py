"""A running server with the fitted demo bundle."""

from tests.server.faults import process


class FittedServer(process.Server):
    """`process.Server` over another bundle than the demo's own."""

    def __init__(self, folder, bundle, *options):
        self.bundle = bundle
        before, process.demo_bundle = process.demo_bundle, lambda: bundle
        try:
            super().__init__(folder, *options)
        finally:
            process.demo_bundle = before

    def url(self, scheme):
        return f"{scheme}://127.0.0.1:{self.http if scheme == 'http' else self.grpc}"
