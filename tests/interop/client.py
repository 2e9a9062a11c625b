"""Drives a daemon with grpcio: Run, RunStream and error details. Usage: client.py STUBS TARGET"""

import sys

sys.path.insert(0, sys.argv[1])

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from ringfence.v1 import result_pb2, sandbox_service_pb2, sandbox_service_pb2_grpc, spec_pb2

TARGET = sys.argv[2]
HELLO = b"""(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 8) "hello from wasm\\n")
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 8))
    (i32.store (i32.const 4) (i32.const 16))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 40)))))"""

# Twice the output limit that is asked for below, and a little: 4 MiB is what clients take by default.
options = [("grpc.max_receive_message_length", 17 << 20)]
channel = grpc.insecure_channel(TARGET, options=options)
sandbox = sandbox_service_pb2_grpc.SandboxServiceStub(channel)

health = sandbox.Health(sandbox_service_pb2.HealthRequest())
assert health.runtime.name == "wasmtime", health

spec = spec_pb2.RunSpec(wasm=HELLO)
answer, call = sandbox.Run.with_call(sandbox_service_pb2.RunRequest(spec=spec))
assert answer.stdout == b"hello from wasm\n", answer
assert answer.result.outcome == result_pb2.OUTCOME_EXITED
assert answer.result.HasField("exit_code") and answer.result.exit_code == 0
assert not answer.result.HasField("fuel_consumed")
assert dict(call.initial_metadata())["ringfence-run-id"] == answer.result.run_id

events = list(sandbox.RunStream(sandbox_service_pb2.RunStreamRequest(spec=spec)))
assert [event.WhichOneof("event") for event in events] == ["started", "stdout", "exit"], events
assert [event.seq for event in events] == [0, 1, 2]

LARGE = b"""(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 97)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 65536))
    (i32.store (i32.const 4) (i32.const 6291456))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 40)))))"""
large = spec_pb2.RunSpec(wasm=LARGE, resources=spec_pb2.Resources(output_limit=8 << 20))
answer = sandbox.Run(sandbox_service_pb2.RunRequest(spec=large))
assert answer.stdout == bytes(6 << 20), (len(answer.stdout), answer.result)
default = sandbox_service_pb2_grpc.SandboxServiceStub(grpc.insecure_channel(TARGET, options=options[:-1]))
streamed = default.RunStream(sandbox_service_pb2.RunStreamRequest(spec=large))
assert sum(len(event.stdout) for event in streamed) == 6 << 20
try:
    default.Run(sandbox_service_pb2.RunRequest(spec=large))
    raise AssertionError("the default took it: what is said of it is not true any more")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error

try:
    bad = spec_pb2.RunSpec(wasm=HELLO, resources=spec_pb2.Resources(memory_pages=70000))
    sandbox.Run(sandbox_service_pb2.RunRequest(spec=bad))
    raise AssertionError("not refused")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
    details = {}
    for detail in rpc_status.from_call(error).details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest):
            if detail.Is(kind.DESCRIPTOR):
                message = kind()
                detail.Unpack(message)
                details[kind.__name__] = message
    info = details["ErrorInfo"]
    assert (info.domain, info.reason) == ("ringfence", "LIMIT_ABOVE_MAXIMUM"), info
    assert (info.metadata["asked"], info.metadata["allowed"]) == ("70000", "4096")
    violation = details["BadRequest"].field_violations[0]
    assert violation.field == "spec.resources.memory_pages", violation

try:
    spin = spec_pb2.RunSpec(wasm=b'(module (func (export "_start") (loop br 0)))')
    late = sandbox.Run(sandbox_service_pb2.RunRequest(spec=spin), timeout=1.0)
    assert late.result.outcome == result_pb2.OUTCOME_TIMED_OUT
except grpc.RpcError as error:
    raise AssertionError(f"the answer did not get home: {error}") from error

print("interop ok")
