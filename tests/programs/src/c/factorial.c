#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) {
    unsigned long long product = 1;
    int top = argc > 1 ? atoi(argv[1]) : 10;
    for (int i = 2; i <= top; i++) product *= i;
    printf("%d! is %llu\n", top, product);
    return 0;
}
