#ifdef __AVX512F__
#define MAMBAADV2_WIDTH 16
#define MAMBAADV2_NAME "avx512"
#define MAMBAADV2_KERNELS avx512_kernels
#include "backward.h"
#include "local.h"
#include "kernel.inc"
#else
#include "job.h"
const scan::Kernels *scan::avx512_kernels() { return nullptr; }
#endif
