;; Overflows its stack before there is an instance.
(module
  (func $f (call $f))
  (start $f)
  (func (export "_start")))
