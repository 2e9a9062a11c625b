// As cwd.c without getcwd, so that wasi-libc's own notion of a working directory is not linked in. Built by
// `zig cc -target wasm32-wasi -O2 cwd_plain.c`.
#include <stdio.h>

int main(int argc, char **argv) {
  for (int i = 1; i < argc; i++) {
    char text[256];
    FILE *file = fopen(argv[i], "r");
    if (file == NULL) {
      printf("%s: error\n", argv[i]);
      continue;
    }
    size_t n = fread(text, 1, sizeof text, file);
    fclose(file);
    printf("%s: %.*s\n", argv[i], (int)n, text);
  }
  return 0;
}
