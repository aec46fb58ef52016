/* hulls.h — the lower convex hull of (time, error) of every decision (private to select_budget.c).
 *
 *   error │ 0                     a chain: its fastest allowed option first, times rising, errors falling,
 *         │  \                    slopes never rising; what lies above it is never chosen
 *         │   1   x
 *         │    ` .   x
 *         │        2 .  _ 3
 *         └──────────────────► time
 */
#ifndef SV_SEARCH_HULLS_H
#define SV_SEARCH_HULLS_H

#include "search/select.h"

SV_EXTERN_C_BEGIN

#define SV_HULL_CHUNK_BITS 8 /* decisions of one work item and one block of memory */

typedef struct sv_hull_point {
  double
      slope; /* weight (error before - error) / (time - time before), positive and finite; first point: +inf */
  float error;
  int32_t option;
} sv_hull_point;

typedef struct sv_hulls {
  sv_hull_point **blocks; /* [chunks] */
  int32_t *first, *count; /* [n], in the block of the decision's chunk */
  int64_t n_blocks;
} sv_hulls;

/* sv_hulls_make — chains of all decisions; checks errors on the way. A weight of 0 leaves the fastest option
 * alone. `out` is to be freed whatever the status. */
sv_status sv_hulls_make(const sv_budget_args *args, sv_hulls *out);
void sv_hulls_free(sv_hulls *hulls);

SV_INLINE const sv_hull_point *sv_hulls_chain(const sv_hulls *hulls, int64_t i) {
  return hulls->blocks[i >> SV_HULL_CHUNK_BITS] + hulls->first[i];
}

SV_EXTERN_C_END
#endif
