/* All kernels for one instruction set: cpu.c includes this once for each, with the constants named in cpu_vectors.h and
   cpu_scan.h set. */

#include "cpu_vectors.h"
#include "cpu_scan.h"
#include "cpu_norms.h"
#include "cpu_depthwise.h"
#include "cpu_inverted.h"
#include "cpu_nearest.h"

#undef vec
#undef half
#undef ivec
#undef splat
#undef at
#undef put
#undef ISA
#undef LANES
#undef GROUP
#undef STEPS
#undef HALF
#undef VECS
#undef ACROSS
#undef ROWS
#undef NEAR
