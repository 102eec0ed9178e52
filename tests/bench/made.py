"""The demo bundle with fitted proxies."""

from kpl_engine.building import add_proxies
from kpl_engine.data import demo_bundle, demo_images
from kpl_engine.engine import Engine
from kpl_engine.imaging.sources import list_images


def pictures(count):
    return [path.read_bytes() for path in list_images(demo_images())[:count]]


def fitted_bundle(path):
    """A copy at ``path`` whose proxies were fitted on all demo pictures."""
    with Engine.load(demo_bundle(), "cpu") as engine:
        frozen, _ = engine.fit(pictures(None))
        base = engine.knowledge()
    entry = {"method": frozen.method, "num_images": frozen.num_images, "knowledge_fingerprint": base.fingerprint}
    return add_proxies(demo_bundle(), base.name, *frozen.to_tensors(), entry, path)
