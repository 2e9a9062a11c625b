;; Asks for the file "large" in the directory that it is given, and reads its first 64 KiB, over and over.
(module
  (import "wasi_snapshot_preview1" "path_filestat_get"
    (func $stat (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_pread"
    (func $read (param i32 i32 i32 i64 i32) (result i32)))
  (memory (export "memory") 32)
  (data (i32.const 0) "large")
  (func (export "_start")
    (drop (call $open
      (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 5) (i32.const 0)
      (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 16)))
    (i32.store (i32.const 40) (i32.const 4096))
    (i32.store (i32.const 44) (i32.const 65536))
    (loop $again
      (drop (call $stat
        (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 5) (i32.const 128)))
      (drop (call $read
        (i32.load (i32.const 16)) (i32.const 40) (i32.const 1) (i64.const 0) (i32.const 32)))
      (br $again))))
