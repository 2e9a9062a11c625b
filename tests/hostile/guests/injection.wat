;; Names that would forge a line of a log, or drive a terminal.
(module $"module\0a\1b[2J\e2\80\aeforged"
  (func $"function\0d\0a2026-01-01T00:00:00Z ERROR forged\1b]0;title\07" (export "_start") (export "entry\0a\1b[31m")
    unreachable))
