;; Writes, to descriptors that are or are not what they were.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_renumber" (func $renumber (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 160)
  (data (i32.const 1000) "x")
  ;; `length` bytes at `from`, by one vector.
  (func $put (param $fd i32) (param $from i32) (param $length i32) (result i32)
    (i32.store (i32.const 0) (local.get $from))
    (i32.store (i32.const 4) (local.get $length))
    (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
  (func $piece (param $fd i32) (result i32)
    (call $put (local.get $fd) (i32.const 1000) (i32.const 1)))
  (func (export "flood") (param $fd i32)
    (loop $again
      (drop (call $put (local.get $fd) (i32.const 0x10000) (i32.const 0x10000)))
      (br $again)))
  (func (export "drip") (param $fd i32)
    (loop $again (drop (call $piece (local.get $fd))) (br $again)))
  (func (export "gulp") (param $fd i32)
    (call $exit (call $put (local.get $fd) (i32.const 0) (i32.const -1))))
  (func (export "beyond") (param $fd i32)
    (call $exit (call $write (local.get $fd) (i32.const -4) (i32.const 1) (i32.const 8))))
  (func (export "closed") (param $fd i32)
    (drop (call $close (local.get $fd)))
    (call $exit (call $piece (local.get $fd))))
  (func (export "renumbered") (param $from i32) (param $to i32) (local $error i32)
    (local.set $error (call $renumber (local.get $from) (local.get $to)))
    (if (local.get $error) (then (call $exit (local.get $error))))
    (call $exit (call $piece (local.get $to))))
  ;; A million vectors of nothing.
  (func (export "vectors_of_nothing")
    (memory.fill (i32.const 0) (i32.const 0) (i32.const 2000))
    (loop $again
      (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1000000) (i32.const 8)))
      (br $again)))
  ;; Four thousand vectors that all are the same megabyte.
  (func (export "vectors_of_the_same") (local $at i32)
    (local.set $at (i32.const 16))
    (loop $more
      (i32.store (local.get $at) (i32.const 0x800000))
      (i32.store offset=4 (local.get $at) (i32.const 0x100000))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br_if $more (i32.lt_u (local.get $at) (i32.const 32016))))
    (loop $again
      (drop (call $write (i32.const 1) (i32.const 16) (i32.const 4000) (i32.const 8)))
      (br $again))))
