;; Spins before there is an instance.
(module
  (func $spin (loop $again (br $again)))
  (start $spin)
  (func (export "_start")))
