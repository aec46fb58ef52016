/* compiler.h — the few words that C11, C++20 and CUDA spell differently.
 * Everything else in the core is plain C11. */
#ifndef SV_BASE_COMPILER_H
#define SV_BASE_COMPILER_H

#ifdef __CUDACC__
#define SV_HD __host__ __device__
#else
#define SV_HD
#endif

#define SV_INLINE static inline

#ifdef __cplusplus
#define SV_RESTRICT __restrict__
#define SV_EXTERN_C_BEGIN extern "C" {
#define SV_EXTERN_C_END }
#else
#define SV_RESTRICT restrict
#define SV_EXTERN_C_BEGIN
#define SV_EXTERN_C_END
#endif

#define SV_PRINTF(format_at, first_at) __attribute__((format(printf, format_at, first_at)))

#endif
