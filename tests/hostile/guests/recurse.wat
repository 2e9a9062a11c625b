;; Calls itself until its stack ends.
(module
  (type $none (func))
  (table 1 funcref)
  (elem (i32.const 0) $indirect)
  (func $f (export "_start") (call $f))
  (func $indirect (export "indirect") (call_indirect (type $none) (i32.const 0))))
