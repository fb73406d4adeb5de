#ifdef __AVX2__
#define MAMBAADV2_WIDTH 8
#define MAMBAADV2_NAME "avx2"
#define MAMBAADV2_KERNELS avx2_kernels
#include "backward.h"
#include "local.h"
#include "kernel.inc"
#else
#include "job.h"
const scan::Kernels *scan::avx2_kernels() { return nullptr; }
#endif
