// What C by wasi-libc makes of a working directory: prints getcwd and PWD, then each path that is asked for with what
// is in it. Built by `zig cc -target wasm32-wasi -O2 cwd.c`.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
  char dir[4096];
  const char *pwd = getenv("PWD");
  printf("name=%s cwd=%s PWD=%s\n", argc > 0 ? argv[0] : "(none)",
         getcwd(dir, sizeof dir) ? dir : strerror(errno), pwd ? pwd : "(none)");
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
