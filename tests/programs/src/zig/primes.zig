//! Sieves primes up to its first argument, and writes what the file that the second names hashes to.

const std = @import("std");

pub fn main(init: std.process.Init) !void {
    const arena = init.arena.allocator();
    const args = try init.minimal.args.toSlice(arena);
    var buffer: [1024]u8 = undefined;
    var stdout: std.Io.File.Writer = .init(.stdout(), init.io, &buffer);
    const out = &stdout.interface;

    const top = try std.fmt.parseInt(usize, args[1], 10);
    const composite = try arena.alloc(bool, top + 1);
    @memset(composite, false);
    var count: usize = 0;
    var last: usize = 0;
    for (2..top + 1) |n| {
        if (composite[n]) continue;
        count += 1;
        last = n;
        if (n > top / n) continue;
        var multiple = n * n;
        while (multiple <= top) : (multiple += n) composite[multiple] = true;
    }
    try out.print("{d} primes, the last is {d}\n", .{ count, last });

    if (args.len > 2) {
        const bytes = try std.Io.Dir.cwd().readFileAlloc(init.io, args[2], arena, .unlimited);
        var hash: [32]u8 = undefined;
        std.crypto.hash.sha2.Sha256.hash(bytes, &hash, .{});
        try out.print("read {d} {x}\n", .{ bytes.len, &hash });
    }
    try out.flush();
}
