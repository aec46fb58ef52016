/* block_ops.h — the table of block operations that every instruction set fills in, and the layouts that
 * the engine and they agree on. One call of `strip` does everything for a few query rows and a chunk of
 * keys while the scores stay in the first-level cache: scores, running softmax, times values.
 *
 *   key panel    [depth][16] float32: element (d, j) = component d of key j; depth = D, or D + 1 when the last
 *                component is a bias in the log2 domain (the query's is 1): pseudo keys and padded tails
 *                bf16 engine: [D/2][16][2] bfloat16
 *   values       key i, panel p of 16 columns at v + i * v_key_stride + p * v_panel_stride (elements)
 *                bf16 engine: [panel][n/2][16][2] bfloat16, pairs of keys; v_key_stride = 16
 *   queries      rows SV_LD_Q apart, multiplied by scale * log2(e), component D = 1; bf16 engine: as given
 *   scores       rows SV_LD_P apart */
#ifndef SV_ATTENTION_BLOCK_OPS_H
#define SV_ATTENTION_BLOCK_OPS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/cpu.h"
#include "base/tensor.h"

#define SV_PANEL 16         /* keys per panel; block sizes are multiples of it */
#define SV_MAX_HEAD_DIM 256 /* the largest head of any supported model, doubled */
#define SV_MAX_CHUNK 512    /* keys per chunk at most: 6 score rows = 12 KiB of the first-level cache */
#define SV_MAX_STRIP 14     /* rows of the tallest strip of any engine */
#define SV_LD_Q (SV_MAX_HEAD_DIM + 16)
#define SV_LD_P (SV_MAX_CHUNK + 16)
#define SV_LOG2_E 1.4426950408889634
#define SV_LN_2 0.6931471805599453

/* sv_segment — keys that lie together. */
typedef struct sv_segment {
  const void *k; /* first panel */
  const void *v;
  int64_t v_key_stride, v_panel_stride;
  int32_t n_keys;
  int32_t depth; /* components of a key panel */
} sv_segment;

/* sv_strip — a few query rows and their running state. */
typedef struct sv_strip {
  int32_t rows;       /* one of the two heights of the table */
  int32_t n_v_panels; /* columns of O / 16 */
  bool is_first;      /* o, row_max and row_sum hold nothing yet */
  float scale;        /* bf16 engine only: scale * log2(e) */
  const void *q;      /* [rows][SV_LD_Q] */
  float *o;           /* [rows][16 * n_v_panels] */
  float *row_max;     /* [rows] log2 domain: what the exponents are taken against */
  float *row_sum;     /* [rows] */
  float *p;           /* [SV_MAX_STRIP][SV_LD_P] room for the scores */
} sv_strip;

typedef struct sv_block_ops {
  const char *name;
  int32_t heights[2]; /* rows of a strip: the fast one, and a lower one that ends a block */
  bool is_bf16;
  void (*strip)(const sv_strip *strip, const sv_segment *segments, int32_t n_segments);
  /* to_float — n numbers of `dtype`, times factor, as float32. from_float — and back, rounded to even. */
  void (*to_float)(const void *from, int32_t dtype, int64_t n, float factor, float *out);
  void (*from_float)(const float *from, int64_t n, float factor, int32_t dtype, void *out);
  /* pack_words — rows[16] of n 32-bit words -> out[n][16]: a transposition. */
  void (*pack_words)(const void *const rows[SV_PANEL], int64_t n, void *out);
  /* multiply_add — `rounds` of independent fused multiply-adds; returns the floating-point operations done. */
  double (*multiply_add)(int64_t rounds);
} sv_block_ops;

extern const sv_block_ops sv_block_ops_portable;
extern const sv_block_ops sv_block_ops_avx2;
extern const sv_block_ops sv_block_ops_avx512;
extern const sv_block_ops sv_block_ops_avx512bf16;

/* sv_block_ops_for — float32 arithmetic at the level in use. sv_block_ops_pairs — bf16 products if `dtype` is
 * bfloat16 and the level has them, else NULL. */
const sv_block_ops *sv_block_ops_for(sv_isa isa);
const sv_block_ops *sv_block_ops_pairs(sv_isa isa, int32_t dtype, int64_t head_dim);

#endif
