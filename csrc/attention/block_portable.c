/* block_portable.c — block operations without intrinsics. Always right, never fast; the other tables are tested against
 * the same oracle. */
#include "attention/vec_portable.h"

#include "attention/block_kernel.h"

static void pack_words(const void *const rows[SV_PANEL], int64_t n, void *out) {
  for (int64_t i = 0; i < n; i++)
    for (int j = 0; j < SV_PANEL; j++)
      memcpy((char *)out + (i * SV_PANEL + j) * 4, (const char *)rows[j] + i * 4, 4);
}

const sv_block_ops sv_block_ops_portable = {.name = "portable f32",
                                            .heights = {TALL, LOW},
                                            .strip = strip_f32,
                                            .to_float = to_float,
                                            .from_float = from_float,
                                            .pack_words = pack_words,
                                            .multiply_add = multiply_add};
