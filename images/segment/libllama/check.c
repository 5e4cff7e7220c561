// Whether the libraries that were just built fit together: their structures, a CPU backend for this processor, and some arithmetic.
#include <stdint.h>
#include <stdio.h>

int si_init(const char * folder);
const char * si_problem(void);
const char * si_version(void);
int si_dequantize(int32_t type, const void * source, float * target, int64_t count);

int main(int count, char ** words) {
    const uint16_t halves[] = {0x3c00, 0xc000};  // float16: 1, -2
    float made[2];
    if (count != 2 || si_init(words[1])) {
        fprintf(stderr, "check: %s\n", count == 2 ? si_problem() : "name the folder of the libraries");
        return 1;
    }
    if (si_dequantize(1, halves, made, 2) || made[0] != 1.0f || made[1] != -2.0f) {
        fprintf(stderr, "check: float16 is read as %g, %g\n", made[0], made[1]);
        return 1;
    }
    printf("llama.cpp %s\n", si_version());
    return 0;
}
