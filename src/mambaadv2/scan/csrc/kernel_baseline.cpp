// What every processor of the architecture has: SSE2 on x86-64, NEON on AArch64.
#define MAMBAADV2_WIDTH 4
#define MAMBAADV2_NAME "baseline"
#define MAMBAADV2_KERNELS baseline_kernels
#include "backward.h"
#include "local.h"
#include "kernel.inc"
