;; Ways to run for ever without leaving one's own code.
(module
  (type $none (func))
  (table 2 funcref)
  (elem (i32.const 0) $indirect $nothing)
  (func (export "_start") (loop $again (br $again)))
  (func $tail (export "tail") (return_call $tail))
  (func $ping (export "ping") (return_call $pong (i32.const 1)))
  (func $pong (param i32) (return_call $ping))
  (func $indirect (export "tail_indirect") (return_call_indirect (type $none) (i32.const 0)))
  (func $nothing)
  ;; A tree of 2^60 calls, 60 deep, without one loop.
  (func $tree (export "calls") (param $depth i32)
    (if (local.get $depth)
      (then
        (call $tree (i32.sub (local.get $depth) (i32.const 1)))
        (call $tree (i32.sub (local.get $depth) (i32.const 1))))))
  (func (export "table") (loop $again (call_indirect (type $none) (i32.const 1)) (br $again)))
  (func (export "switch") (param $n i32)
    (loop $again
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_table $again $again $again (i32.and (local.get $n) (i32.const 1))))))
