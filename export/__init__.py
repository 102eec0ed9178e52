"""From a CLIP checkpoint to ONNX. The only room that imports torch; installed as ``kpl_engine.export``."""
