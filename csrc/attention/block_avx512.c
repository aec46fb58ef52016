/* block_avx512.c — block operations in 512 bits (F, BW, DQ, VL). */
#include "attention/vec_avx512.h"

#include "attention/block_kernel.h"

/* 16 x 16 words: 32-bit pairs, 64-bit pairs, then 128-bit quarters twice. */
static void transpose_16x16(const float *const rows[16], int64_t i, float *out) {
  __m512 a[16], b[16];
  EACH(j, 16) { a[j] = _mm512_loadu_ps(rows[j] + i); }
  for (int j = 0; j < 16; j += 2) {
    b[j] = _mm512_unpacklo_ps(a[j], a[j + 1]);
    b[j + 1] = _mm512_unpackhi_ps(a[j], a[j + 1]);
  }
  for (int j = 0; j < 16; j += 4) {
    a[j] = _mm512_shuffle_ps(b[j], b[j + 2], 0x44);
    a[j + 1] = _mm512_shuffle_ps(b[j], b[j + 2], 0xee);
    a[j + 2] = _mm512_shuffle_ps(b[j + 1], b[j + 3], 0x44);
    a[j + 3] = _mm512_shuffle_ps(b[j + 1], b[j + 3], 0xee);
  }
  EACH(j, 4) {
    b[j] = _mm512_shuffle_f32x4(a[j], a[j + 4], 0x88);
    b[j + 4] = _mm512_shuffle_f32x4(a[j], a[j + 4], 0xdd);
    b[j + 8] = _mm512_shuffle_f32x4(a[j + 8], a[j + 12], 0x88);
    b[j + 12] = _mm512_shuffle_f32x4(a[j + 8], a[j + 12], 0xdd);
  }
  EACH(j, 8) {
    _mm512_storeu_ps(out + j * SV_PANEL, _mm512_shuffle_f32x4(b[j], b[j + 8], 0x88));
    _mm512_storeu_ps(out + (j + 8) * SV_PANEL, _mm512_shuffle_f32x4(b[j], b[j + 8], 0xdd));
  }
}

static void pack_words(const void *const rows[SV_PANEL], int64_t n, void *out) {
  const float *const *r = (const float *const *)rows;
  float *o = out;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) transpose_16x16(r, i, o + i * SV_PANEL);
  for (; i < n; i++)
    for (int j = 0; j < SV_PANEL; j++) memcpy(o + i * SV_PANEL + j, r[j] + i, sizeof(float));
}

const sv_block_ops sv_block_ops_avx512 = {.name = "avx512 f32",
                                          .heights = {TALL, LOW},
                                          .strip = strip_f32,
                                          .to_float = to_float,
                                          .from_float = from_float,
                                          .pack_words = pack_words,
                                          .multiply_add = multiply_add};
