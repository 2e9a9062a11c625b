/* Reads numbers from stdin, sorts them, and writes them with their mean: stdio, qsort, floating point, a file. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int by_size(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

int main(int argc, char **argv) {
    double *numbers = NULL, sum = 0;
    size_t count = 0, room = 0;
    double number;
    while (scanf("%lf", &number) == 1) {
        if (count == room) {
            room = room ? room * 2 : 16;
            numbers = realloc(numbers, room * sizeof *numbers);
            if (!numbers) return 9;
        }
        numbers[count++] = number;
        sum += number;
    }
    qsort(numbers, count, sizeof *numbers, by_size);
    for (size_t i = 0; i < count; i++) printf("%g\n", numbers[i]);
    printf("mean %.3f of %zu, root %.3f\n", count ? sum / (double)count : NAN, count, sqrt(sum));
    if (argc > 1) {
        FILE *file = fopen(argv[1], "rb");
        if (!file) {
            fprintf(stderr, "%s: %s\n", argv[1], strerror(errno));
            return 3;
        }
        /* Far more than fits at once in what a host may copy in one call. */
        size_t size = 24u << 20;
        char *bytes = malloc(size);
        size_t got = bytes ? fread(bytes, 1, size, file) : 0;
        unsigned check = 0;
        for (size_t i = 0; i < got; i++) check = check * 31 + (unsigned char)bytes[i];
        printf("read %zu, check %u, %s\n", got, check, ferror(file) ? strerror(errno) : "whole");
    }
    free(numbers);
    return 0;
}
