/*
 * kernels_avx512vnni.c: kernels_avx512.c once more, compiled for machines that have vpdpbusd (see the Makefile's flags).
 */
#define MX_VNNI
#define MX_KERNELS_AVX512 mx_kernels_avx512vnni
#include "kernels_avx512.c"
