//! What Zig without a libc makes of a working directory: prints each path that is asked for with what is in it.
//! Built by `zig build-exe -target wasm32-wasi -O ReleaseSmall cwd.zig`.
const std = @import("std");

pub fn main(init: std.process.Init) !void {
    const io = init.io;
    const gpa = init.arena.allocator();
    var buffer: [4096]u8 = undefined;
    var stdout = std.Io.File.stdout().writer(io, &buffer);
    const out = &stdout.interface;
    const args = try init.minimal.args.toSlice(gpa);
    for (args, 0..) |path, i| {
        if (i == 0) continue;
        const text = std.Io.Dir.cwd().readFileAlloc(io, path, gpa, .limited(256)) catch "error";
        try out.print("{s}: {s}\n", .{ path, text });
    }
    try out.flush();
}
