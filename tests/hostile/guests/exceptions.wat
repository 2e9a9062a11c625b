;; Throws what nobody catches, or catches what it throws, for ever.
(module
  (tag $t (param i64))
  (func (export "_start") (throw $t (i64.const 1)))
  (func (export "flood")
    (loop $again
      (block $caught (result exnref)
        (try_table (catch_all_ref $caught) (throw $t (i64.const 1)))
        unreachable)
      drop
      (br $again)))
  ;; Catches all there is, which a stack's end is not.
  (func $deep (export "deep")
    (block $caught (try_table (catch_all $caught) (call $deep)))))
