"""Run with the genuine bindings on the path: prints what they offer as JSON. Knows nothing of kpl-engine."""

import inspect
import json
import re
import sys

import tensorrt_bindings as trt

SIGNATURE = re.compile(r"^(?:\d+\. )?(\w+)\((.*)\)(?: -> (.+))?$")


def parameters(text):
    """Names of the parameters in a pybind signature; commas inside brackets belong to types and defaults."""
    names, depth, part = [], 0, ""
    for char in text + ",":
        depth += (char in "[(<") - (char in "])>")
        if char == "," and depth == 0:
            name = re.match(r"\s*(\w+)", part)
            names.extend([name.group(1)] if name else [])
            part = ""
        else:
            part += char
    return names


def overloads(documented):
    found = [SIGNATURE.match(line.strip()) for line in (documented.__doc__ or "").split("\n")]
    return [
        [parameters(match.group(2)), (match.group(3) or "").rsplit(".", maxsplit=1)[-1].rsplit("::", maxsplit=1)[-1]]
        for match in found
        if match and match.group(2) != "*args, **kwargs"
    ]


def members(kind):
    found = {}
    for name in dir(kind):
        static = inspect.getattr_static(kind, name)
        if isinstance(static, property):
            found[name] = {"kind": "property", "is_writable": static.fset is not None}
        elif callable(getattr(kind, name)) and (not name.startswith("__") or name in ("__init__", "__bool__")):
            found[name] = {"kind": "method", "overloads": overloads(getattr(kind, name))}
    return found


def main():
    classes, enums = {}, {}
    for name, value in vars(trt).items():
        if not inspect.isclass(value):
            continue
        if hasattr(value, "__members__"):
            enums[name] = {key: int(number) for key, number in value.__members__.items()}
        else:
            classes[name] = members(value)
    enums["Severity"] = {key: int(number) for key, number in trt.ILogger.Severity.__members__.items()}
    json.dump({"version": trt.__version__, "classes": classes, "enums": enums}, sys.stdout)


if __name__ == "__main__":
    main()
