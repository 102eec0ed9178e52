"""The messages are the public ones, and live beside those of other packages."""

import importlib.util
import subprocess
import sys

import pytest
from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

from kpl_engine.errors import MissingExtraError, RequestError
from kpl_engine.server.grpc import compile_proto, messages
from kpl_engine.server.grpc.messages import DESCRIPTORS, message, methods, parse

SERVICE = "inference.GRPCInferenceService"


def shipped(name):
    files = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file
    return next(each for each in files if each.name == name)


def flat(nested, prefix=""):
    """Messages by their names with those around them."""
    found = {}
    for each in nested:
        found[prefix + each.name] = each
        found |= flat(each.nested_type, f"{prefix}{each.name}.")
    return found


def public_file(module):
    file = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    return file


def fields(found):
    """What decides the wire: number, type, label, and which ``oneof``."""
    return {
        field.name: (field.number, field.type, field.label, field.type_name, field.HasField("oneof_index"))
        for field in found.field
    }


def test_every_field_of_ours_has_the_public_number_and_type():
    public = flat(public_file(service_pb2).message_type) | flat(public_file(model_config_pb2).message_type)
    ours = flat(shipped("inference.proto").message_type)
    assert len(ours) > 40
    for name, found in ours.items():
        assert name in public
        known = fields(public[name])
        for field, facts in fields(found).items():
            assert facts == known[field], f"{name}.{field}"
        assert found.options.map_entry == public[name].options.map_entry


def test_of_what_every_client_sends_no_field_is_left_out():
    public = flat(public_file(service_pb2).message_type)
    ours = flat(shipped("inference.proto").message_type)
    whole = [name for name in ours if name.startswith(("ModelInfer", "Infer", "Model", "Server", "Repository"))]
    left_out = {"ModelConfig", "ModelInput", "ModelOutput", "ModelInstanceGroup", "ModelStatistics", "InferStatistics"}
    checked = [name for name in whole if name not in left_out]
    assert {"ModelInferRequest", "InferParameter", "InferTensorContents"} <= set(checked)
    for name in checked:
        assert fields(ours[name]).keys() == fields(public[name]).keys(), name


def test_enumerations_are_the_public_ones():
    public = {each.name: each for each in public_file(model_config_pb2).enum_type}
    for each in shipped("inference.proto").enum_type:
        assert {v.name: v.number for v in each.value} == {v.name: v.number for v in public[each.name].value}


def test_methods_are_the_public_ones():
    public = public_file(service_pb2).service[0]
    known = {m.name: (m.input_type, m.output_type, m.client_streaming, m.server_streaming) for m in public.method}
    for m in shipped("inference.proto").service[0].method:
        assert (m.input_type, m.output_type, m.client_streaming, m.server_streaming) == known[m.name]
    promised = {"ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"}
    promised |= {"ModelConfig", "ModelStatistics", "ModelStreamInfer", "RepositoryIndex"}
    assert methods(SERVICE).keys() == promised | {"RepositoryModelLoad", "RepositoryModelUnload"}


def test_the_shipped_descriptors_are_those_of_the_proto_files(tmp_path):
    """Compared as messages: another protoc may write them in another order."""
    pytest.importorskip("grpc_tools")
    assert compile_proto.main(tmp_path / "new.binpb") == 0
    fresh = descriptor_pb2.FileDescriptorSet.FromString((tmp_path / "new.binpb").read_bytes())
    assert fresh == descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())


def test_a_message_of_tritonclient_is_one_of_ours():
    sent = service_pb2.ModelInferRequest(model_name="m", id="7", raw_input_contents=[b"ab"])
    sent.inputs.add(name="x", datatype="FP32", shape=[1, -2]).parameters["k"].double_param = 0.5
    sent.parameters["u"].uint64_param = 2**64 - 1
    got = parse(message("ModelInferRequest"), sent.SerializeToString())
    assert got.parameters["u"].uint64_param == 2**64 - 1
    assert got.inputs[0].parameters["k"].double_param == 0.5
    assert service_pb2.ModelInferRequest.FromString(got.SerializeToString()) == sent


def test_bytes_that_are_no_message():
    with pytest.raises(RequestError, match=r"expected a inference\.ModelInferRequest"):
        parse(message("ModelInferRequest"), b"\x0a\xff")


OTHERS = ["tritonclient.grpc", "kserve.protocol.grpc.grpc_predict_v2_pb2", "grpc_health.v1.health_pb2"]


@pytest.mark.parametrize("first", [True, False], ids=["ours first", "ours last"])
@pytest.mark.parametrize("other", OTHERS)
def test_beside_other_packages_in_one_process(other, first):
    if importlib.util.find_spec(other.partition(".")[0]) is None:
        pytest.skip(f"{other.partition('.')[0]} is not installed")
    ours = "from kpl_engine.server.grpc.messages import message, methods; message('ModelInferRequest')(id='1')\n"
    theirs = f"import {other}\n"
    check = f"assert len(methods('{SERVICE}')) == 12 and len(methods('grpc.health.v1.Health')) == 2\n"
    code = (ours + theirs if first else theirs + ours) + check
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("module", "package"), [("grpc", "grpcio"), ("google.protobuf", "protobuf")])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, module, package):
    import asyncio

    from kpl_engine.server.grpc import start_grpc

    for name in [name for name in sys.modules if name.startswith("kpl_engine.server.grpc.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name == module or name.startswith(module + ".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*kpl-engine\[grpc\]"):
        asyncio.run(start_grpc(None, None, None))


def test_the_pool_is_made_once():
    assert message("ModelInferRequest") is message("ModelInferRequest")
    assert messages._pool() is messages._pool()
