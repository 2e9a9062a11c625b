;; A reactor that never comes to be.
(module
  (func (export "_initialize") (loop $again (br $again)))
  (func (export "go")))
