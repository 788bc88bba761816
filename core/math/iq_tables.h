/*
 * iq_tables.h: the codebooks of the IQ block types.
 *
 * A grid entry is the bytes of 8 (uint64_t) or 4 (uint32_t) weights, the first in the lowest byte. Constants of the
 * GGUF/ggml format, values as in ggml-common.h.
 */
#ifndef MX_MATH_IQ_TABLES_H
#define MX_MATH_IQ_TABLES_H

#include <stdint.h>

extern const uint8_t mx_ksigns[128];       /* seven stored sign bits, and the eighth that makes their number even */
extern const uint64_t mx_iq2xxs_grid[256]; /* IQ2_XXS: eight magnitudes */
extern const uint64_t mx_iq2xs_grid[512];  /* IQ2_XS: eight magnitudes */
extern const uint64_t mx_iq2s_grid[1024];  /* IQ2_S: eight magnitudes */
extern const uint32_t mx_iq3xxs_grid[256]; /* IQ3_XXS: four magnitudes */
extern const uint32_t mx_iq3s_grid[512];   /* IQ3_S: four magnitudes */
extern const int8_t mx_iq4nl_values[16];   /* IQ4_NL, IQ4_XS: the weights that a nibble stands for */
extern const uint64_t mx_iq1s_grid[2048];  /* IQ1_S, IQ1_M: eight of -1, 0, 1 (signed bytes) */

#endif
