"""Drives `ringfence mcp` by the client of the Model Context Protocol's own SDK, of either major version."""

import asyncio
import sys

import mcp

HELLO = r"""(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 16) "hello\n__OUT__:{\"a\": 1}\n")
    (func (export "_start")
        (i32.store (i32.const 0) (i32.const 16))
        (i32.store (i32.const 4) (i32.const 23))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"""
SPIN = '(module (func (export "_start") (loop $on (br $on))))'


def field(value, camel):
    """The first version has the names of the wire, the second has Python's."""
    snake = "".join("_" + c.lower() if c.isupper() else c for c in camel)
    return getattr(value, snake if hasattr(value, snake) else camel)


async def call(client, tool, **arguments):
    result = await client.call_tool(tool, arguments)
    assert not field(result, "isError"), result
    assert result.content[0].text
    return field(result, "structuredContent")


async def drive(client):
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    names = ["run_code", "run_module", "read_output", "list_runs", "kill_run", "list_languages"]
    assert list(tools) == names, tools
    for tool in tools.values():
        assert field(tool, "inputSchema")["type"] == "object" and field(tool, "outputSchema"), tool

    languages = await call(client, "list_languages")
    assert "wat" in [language["name"] for language in languages["languages"]]
    ran = await call(client, "run_code", language="wat", code=HELLO)
    assert (ran["exit_code"], ran["stdout"]) == (0, 'hello\n__OUT__:{"a": 1}\n'), ran
    assert ran["value"] == '{"a": 1}', ran
    files = [{"path": "/in/a.txt", "text": "kept"}, {"path": "/in/b", "base64": "/wAB"}]
    kept = await call(client, "run_code", language="wat", code=HELLO, files=files, collect=["/in/*"])
    assert [file["path"] for file in kept["files"]] == ["/in/a.txt", "/in/b"], kept
    assert (kept["files"][0]["text"], kept["files"][1]["base64"]) == ("kept", "/wAB"), kept
    read = await call(client, "read_output", run_id=ran["run_id"])
    assert read["ended"] and read["stdout"] == ran["stdout"], read
    assert read["result"]["outcome"] == "OUTCOME_EXITED", read

    refused = await client.call_tool("run_code", {"language": "cobol", "code": "DISPLAY 'A'."})
    assert field(refused, "isError"), refused
    assert field(refused, "structuredContent")["error"]["reason"] == "UNSUPPORTED_LANGUAGE", refused

    spins = asyncio.create_task(call(client, "run_code", language="wat", code=SPIN, timeout_seconds=100))
    running = []
    while not running:
        assert not spins.done(), spins
        running = (await call(client, "list_runs", states=["running"]))["runs"]
    killed = await call(client, "kill_run", run_id=running[0]["run_id"])
    assert killed["cancelled"], killed
    ended = await spins
    assert (ended["outcome"], ended["exit_code"]) == ("OUTCOME_CANCELLED", None), ended
    assert ended["run_id"] == running[0]["run_id"]
    print("interop ok")


async def main():
    program, server = sys.argv[1:]
    parameters = mcp.StdioServerParameters(command=program, args=["mcp", "--server", server])
    if hasattr(mcp, "Client"):
        async with mcp.Client(parameters) as client:
            await drive(client)
        async with mcp.Client(parameters, mode="legacy") as client:
            assert (await client.list_tools()).tools
        return
    async with mcp.stdio_client(parameters) as streams, mcp.ClientSession(*streams) as client:
        await client.initialize()
        await drive(client)


asyncio.run(main())
