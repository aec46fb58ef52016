/* block_avx2.c — block operations in 256 bits. */
#include "attention/vec_avx2.h"

#include "attention/block_kernel.h"

static void transpose_8x8(const float *const rows[8], int64_t i, float *out) {
  __m256 r[8], s[8], t[8];
  EACH(j, 8) { r[j] = _mm256_loadu_ps(rows[j] + i); }
  for (int j = 0; j < 8; j += 2) {
    s[j] = _mm256_unpacklo_ps(r[j], r[j + 1]);
    s[j + 1] = _mm256_unpackhi_ps(r[j], r[j + 1]);
  }
  for (int j = 0; j < 8; j += 4) {
    t[j] = _mm256_shuffle_ps(s[j], s[j + 2], 0x44);
    t[j + 1] = _mm256_shuffle_ps(s[j], s[j + 2], 0xee);
    t[j + 2] = _mm256_shuffle_ps(s[j + 1], s[j + 3], 0x44);
    t[j + 3] = _mm256_shuffle_ps(s[j + 1], s[j + 3], 0xee);
  }
  EACH(j, 4) {
    _mm256_storeu_ps(out + j * SV_PANEL, _mm256_permute2f128_ps(t[j], t[j + 4], 0x20));
    _mm256_storeu_ps(out + (j + 4) * SV_PANEL, _mm256_permute2f128_ps(t[j], t[j + 4], 0x31));
  }
}

static void pack_words(const void *const rows[SV_PANEL], int64_t n, void *out) {
  const float *const *r = (const float *const *)rows;
  float *o = out;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    transpose_8x8(r, i, o + i * SV_PANEL);
    transpose_8x8(r + 8, i, o + i * SV_PANEL + 8);
  }
  for (; i < n; i++)
    for (int j = 0; j < SV_PANEL; j++) memcpy(o + i * SV_PANEL + j, r[j] + i, sizeof(float));
}

const sv_block_ops sv_block_ops_avx2 = {.name = "avx2 f32",
                                        .heights = {TALL, LOW},
                                        .strip = strip_f32,
                                        .to_float = to_float,
                                        .from_float = from_float,
                                        .pack_words = pack_words,
                                        .multiply_add = multiply_add};
