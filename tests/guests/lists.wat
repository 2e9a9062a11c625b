;; Lists the directory that it is given, over and over.
(module
  (import "wasi_snapshot_preview1" "fd_readdir"
    (func $list (param i32 i32 i32 i64 i32) (result i32)))
  (memory (export "memory") 32)
  (func (export "_start")
    (loop $again
      (drop (call $list
        (i32.const 3) (i32.const 4096) (i32.const 1048576) (i64.const 0) (i32.const 32)))
      (br $again))))
