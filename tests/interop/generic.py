"""Drives a daemon with grpcio and no file of its own: what it knows of the API it learns by reflection, and why it is
refused from the details that every client of gRPC knows. Usage: generic.py TARGET"""

import sys

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

channel = grpc.insecure_channel(sys.argv[1])
database = ProtoReflectionDescriptorDatabase(channel)
pool = descriptor_pool.DescriptorPool(database)


def message(name):
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def method(service, name):
    found = pool.FindServiceByName(service).FindMethodByName(name)
    return channel.unary_unary(
        f"/{service}/{name}",
        request_serializer=lambda it: it.SerializeToString(),
        response_deserializer=message(found.output_type.full_name).FromString,
    )


services = database.get_services()
for service in ("grpc.health.v1.Health", "ringfence.v1.SandboxService"):
    assert service in services, services

health = method("grpc.health.v1.Health", "List")(message("grpc.health.v1.HealthListRequest")())
assert health.statuses[""].status == 1, health

request = message("ringfence.v1.RunRequest")()
request.spec.wasm = b'(module (func (export "_start")))'
run = method("ringfence.v1.SandboxService", "Run")
# A deadline that is long, and one that is short.
for timeout in (30, 0.03):
    try:
        assert run(request, timeout=timeout).result.exit_code == 0
    except grpc.RpcError as error:
        assert timeout < 1 and error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error

request.spec.resources.memory_pages = 70000
try:
    run(request)
    raise AssertionError("not refused")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
    status = rpc_status.from_call(error)
    [info] = [it for it in status.details if it.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    # By what the client has, and by what reflection tells it.
    known = error_details_pb2.ErrorInfo()
    info.Unpack(known)
    told = message("google.rpc.ErrorInfo").FromString(info.value)
    for it in (known, told):
        assert (it.domain, it.reason) == ("ringfence", "LIMIT_ABOVE_MAXIMUM"), it
        assert (it.metadata["asked"], it.metadata["allowed"]) == ("70000", "4096"), it
    # As a tool prints them that knows no type beforehand.
    texts = [json_format.MessageToDict(it, descriptor_pool=pool) for it in status.details]
    assert [it["@type"].rsplit(".", 1)[1] for it in texts] == ["ErrorInfo", "BadRequest"], texts
    assert texts[0]["metadata"]["limit"] == "policy.max_memory_pages", texts

print("interop ok")
