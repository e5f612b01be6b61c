/* What a CPU does in one pass of our own, in float32: the selective scan (cpu_scan.h), two normalisations with SiLU
   (cpu_norms.h), the depthwise convolution (cpu_depthwise.h), all of them forward and backward; forward alone the
   blocks of the default encoder (cpu_inverted.h) and the nearest patches of a memory (cpu_nearest.h).

   The scan's pass does the projection of dt from its low rank, softplus, discretisation, recurrence and the sum over
   directions. Rows are read and results added where the walk over the grid finds them: no permuted copy exists. Its
   letters: b batch, k directions, d channels, l positions, n states, r rank of dt. Lanes of a vector are channels, so
   that rows are read as they lie; a task owns one image and a block of channels and walks all k directions.

   Plain C without Python or torch, called over raw pointers. The same source (cpu_kernels.h) is compiled for each
   instruction set and one is chosen at run time. */

#include "cpu_platform.h"

enum {
    TILE = 32,   /* positions between two stored states */
    BLOCK = 64,  /* channels of a task at most */
    AHEAD = 8,   /* positions that rows are asked for ahead */
    WIDEST = 32, /* channels that go backward at once at most */
    BAND = 16,   /* rows of a depthwise convolution's task */
    MOST_NEIGHBOURS = 16,
    PANEL = 16,     /* channels of an encoder's block that lie together */
    GROUPS = 8,     /* of points that are compared with a panel of patches one after the other */
    MOST_ROWS = 16, /* columns of a row that are multiplied at once at most */
    FEWEST_ROWS = 4, /* of a band, if an image is cut into several */
    TILE_FLOATS = 192 * 1024, /* of the ring of a tile of columns, so that it stays in the second cache */
};

typedef struct {
    int64_t b, l, k, d, n, r;
    const float *u;         /* (b, l, d) */
    const float *x;         /* (b, l, k, r + 2n): dt in its low rank, B, C */
    const float *dt_weight; /* (k, d, r) */
    const float *dt_bias;   /* (k, d) */
    const float *A;         /* (k, d, n), negative */
    const float *D;         /* (k, d) */
    const int32_t *order;   /* (k, l) */
    float *y;               /* (b, l, d) */
    float *border;          /* (b, k, ceil(l / TILE), n, d) states at the start of each tile, or null */
    const float *dy;        /* (b, l, d): from here on backward alone */
    float *du;              /* (b, l, d) */
    float *dx;              /* (groups, b, l, k, r + 2n), to be summed over groups */
    float *d_dt_weight;     /* (b, k, d, r), to be summed over b, as the next three */
    float *d_dt_bias;       /* (b, k, d) */
    float *dA;              /* (b, k, d, n) */
    float *dD;              /* (b, d), the same for each direction */
    int64_t groups;         /* of channel blocks: a backward task owns one image and one group */
} Scan;

/* InstanceNorm (no affine, eps 1e-5) and SiLU */
typedef struct {
    int64_t b, l, c;
    const float *x;  /* (b, l, c) */
    float *y;        /* (b, l, c) */
    float *moments;  /* (b, 2, c): mean and 1 / deviation over l, written forward and read backward */
    const float *dy; /* (b, l, c): from here on backward alone, else null */
    float *dx;       /* (b, l, c) */
} Norm;

/* LayerNorm (affine, eps 1e-5) times SiLU of a gate */
typedef struct {
    int64_t rows, c, parts;     /* a task owns one part of the rows */
    const float *x, *gate;      /* (rows, c) */
    const float *weight, *bias; /* (c) */
    float *y;                   /* (rows, c) */
    float *moments;             /* (rows, 2): mean and 1 / deviation over c, written forward and read backward */
    const float *dy;            /* (rows, c): from here on backward alone, else null */
    float *dx, *d_gate;         /* (rows, c) */
    float *d_affine;            /* (parts, 2, c) of weight and bias, to be summed over parts */
} Gated;

/* Depthwise convolution, stride 1, zeros around the image */
typedef struct {
    int64_t b, h, w, c, size; /* size × size taps: 3, 5 or 7 */
    int64_t flipped;          /* 1: with the filter turned by 180°, as a gradient goes back through it */
    const float *x;           /* (b, h, w, c) */
    const float *weight;      /* (size, size, c) */
    const float *bias;        /* (c), or null */
    float *y;                 /* (b, h, w, c) */
    const float *dy;          /* (b, h, w, c): from here on for the gradient of the weight alone */
    float *d_weight;          /* (b, size * size + 1, c) of the taps and the bias, to be summed over b */
} Depthwise;

/* Mean distance to the nearest patches, in units of their spacing. A patch is integers times its step. */
typedef struct {
    int64_t rows, c, pairs;     /* points of c channels, in `pairs` of two */
    int64_t m, count, kept;     /* the `count` nearest of m patches, among the `kept` nearest by integers */
    int64_t largest;            /* integer of a point */
    const float *points;        /* (rows, c) */
    const int16_t *patches;     /* (ceil(m / PANEL), pairs, PANEL, 2) of -127 to 127, zeros behind the last channel */
    const float *steps, *lengths; /* (ceil(m / PANEL) * PANEL); squared lengths, infinite behind the last patch */
    const float *originals;       /* (m, c) */
    const float *spacing;         /* (m) */
    float *distances;           /* (rows) */
} Nearest;

/* A block of EfficientNet-lite: pointwise expansion, depthwise convolution, pointwise projection. The first block has
   the stem in place of the expansion: a convolution of 3×3, stride 2, as products with the c = 27 values under it. */
typedef struct {
    int64_t b, h, w, c;          /* of what is expanded; of the stem's result, and 27 */
    int64_t wide, narrow;        /* channels between, a multiple of PANEL, and of the result, one of eight like c */
    int64_t size, stride;        /* of the depthwise convolution: 3 or 5, 1 or 2 */
    int64_t top, left;           /* zeros before its first row and column */
    int64_t rows, columns;       /* of the result */
    int64_t shortcut;            /* 1: what goes in is added to the result */
    int64_t stem, stem_h, stem_w; /* 1: x are images of so many pixels */
    int64_t stem_top, stem_left; /* zeros before their first row and column */
    int64_t bands;               /* of rows, that each image is cut into; set here */
    const float *x;              /* (b, h, w, c), or images (b, 3, stem_h, stem_w) */
    const float *expand, *expand_bias;   /* (wide / PANEL, c, PANEL) and (wide) */
    const float *taps, *taps_bias;       /* (wide / PANEL, size, size, PANEL) and (wide) */
    const float *project, *project_bias; /* (ceil(narrow / PANEL), wide, PANEL), zeros behind the last channel */
    const float *mean, *scale;           /* (3): an image is normalised to (x − mean) · scale */
    float *y;                            /* (b, rows, columns, narrow) */
} Inverted;

typedef void Task(const void *work, int64_t width, int64_t task, float *scratch);

typedef struct {
    const void *work; /* one of the structs above */
    int64_t width;    /* channels of a block: 16, 32 or 64 */
    int64_t tasks;
    int64_t next; /* the first task that nobody has taken, changed atomically */
    int failed;   /* set where a thread had no memory */
    Task *run;
    size_t scratch; /* floats a thread needs */
} Job;

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Floats of scratch: rows of a tile, constants of a block, and for backward the states and decays of a tile and its
   gradients of x. */
static size_t forward_scratch(const Scan *s) { return BLOCK * (4 * TILE + 2 * s->n + s->r + 2); }
static size_t backward_scratch(const Scan *s) {
    return BLOCK * (7 * TILE + 4 * s->n + 2 * s->r + 4) + (2 * TILE + 1) * 8 * WIDEST + TILE * (2 * s->n + s->r) + 16;
}

/* The taps, and as many padded rows as the filter is high, and one more. */
static size_t depthwise_scratch(const Depthwise *s) {
    enum { LANES_AT_MOST = 16, ACROSS_AT_MOST = 8 };
    return LANES_AT_MOST * (s->size * s->size + (s->size + 1) * (s->w + ACROSS_AT_MOST + s->size));
}

/* Columns of a row that are computed, and of a row of the ring, for tiles of `width` columns. */
static inline int64_t inverted_padded(int64_t width) { return ceil_div(width, MOST_ROWS) * MOST_ROWS + MOST_ROWS; }
static inline int64_t inverted_ring(const Inverted *s, int64_t width) {
    return (ceil_div(width, 8) * 8 - 1) * s->stride + s->size;
}
static size_t inverted_scratch(const Inverted *s, int64_t width) {
    int64_t ring = inverted_ring(s, width);
    size_t rows_of_stem = s->stem ? 9 * (2 * ring + 1) : 0;
    return s->wide * s->size * ring + ceil_div(s->c, PANEL) * (ring + MOST_ROWS) * PANEL + rows_of_stem +
           s->wide * inverted_padded(width);
}

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define FN(name) JOIN(name, ISA)

#define ISA portable /* SSE2 on x86, NEON on ARM */
#define LANES 4
#define GROUP 4
#define STEPS 2
#define HALF 2
#define VECS 1
#define ACROSS 4
#if defined(__aarch64__)
#define ROWS 6 /* with four vectors of 32 registers for the weights and one for a value: 29 */
#else
#define ROWS 4
#endif
#define NEAR 4
#include "cpu_kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define ISA avx2
#define AVX2 1
#define LANES 8
#define GROUP 4
#define STEPS 2
#define HALF 4
#define VECS 1
#define ACROSS 4
#define ROWS 6
#define NEAR 4
#include "cpu_kernels.h"
#undef AVX2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#endif
#define ISA avx512
#define AVX512 1
#define LANES 16
#define GROUP 16
#define STEPS 2
#define HALF 8
#define VECS 2
#define ACROSS 8
#define ROWS 14
#define NEAR 8
#include "cpu_kernels.h"
#undef AVX512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

/* Denormal numbers make the recurrence several times slower and mean nothing here: flush them to zero while a thread
   works. Returns the state to restore. */
static uint64_t flush_denormals(void) {
#if defined(__x86_64__)
    unsigned old = _mm_getcsr();
    _mm_setcsr(old | 0x8040);
    return old;
#elif defined(__aarch64__)
    uint64_t old;
    __asm__ volatile("mrs %0, fpcr" : "=r"(old));
    __asm__ volatile("msr fpcr, %0" : : "r"(old | (1ull << 24)));
    return old;
#else
    return 0;
#endif
}

static void restore_denormals(uint64_t old) {
#if defined(__x86_64__)
    _mm_setcsr((unsigned)old);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(old));
#else
    (void)old;
#endif
}

static void work(void *argument) {
    Job *job = argument;
    float *scratch = allocate(job->scratch * sizeof(float));
    if (!scratch) {
        __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    uint64_t old = flush_denormals();
    int64_t task;
    while ((task = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->tasks)
        job->run(job->work, job->width, task, scratch);
    restore_denormals(old);
    release(scratch);
}

THREAD(work)

/* What libgomp calls to run a function on each thread of a team. torch's own team is borrowed through it where the
   process has one: a second pool would fight with its waiting threads for the cores. */
typedef void (*Parallel)(void (*)(void *), void *, unsigned threads, unsigned flags);

static int run(Job *job, int64_t threads, Parallel parallel) {
    enum { MOST = 256 };
    threads = smaller(smaller(threads, job->tasks), MOST);
    if (threads > 1 && parallel) {
        parallel(work, job, (unsigned)threads, 0);
        return job->failed;
    }
    Thread helpers[MOST];
    int64_t started = 0;
    while (started < threads - 1 && start_thread(&helpers[started], work_thread, job)) started++;
    work(job);
    while (started) join_thread(helpers[--started]);
    return job->failed;
}

/* The widest block of channels that still keeps all threads busy to the end. */
static int64_t block_width(int64_t channels, int64_t images, int64_t threads) {
    for (int64_t width = BLOCK; width > 16; width /= 2) {
        int64_t tasks = images * ceil_div(channels, width);
        if (2 * channels > width && (tasks % threads == 0 || tasks >= 4 * threads)) return width;
    }
    return 16;
}

EXPORT int mambaad_tile(void) { return TILE; }

/* The number of an instruction set, the best one that this machine has. */
EXPORT int mambaad_best_isa(void) { return best_isa(); }

/* What each instruction set has, by its number. */
static const struct {
    Task *forward, *backward, *norm, *gated, *depthwise, *depthwise_weight, *inverted, *nearest;
    int64_t rows; /* that are multiplied at once */
} kernels[] = {
#define ALL_OF(ISA)                                                                                                    \
    {JOIN(forward, ISA), JOIN(backward, ISA),  JOIN(norm, ISA),   JOIN(gated, ISA), JOIN(depthwise, ISA),                \
     JOIN(depthwise_weight, ISA), JOIN(inverted, ISA),  JOIN(nearest, ISA), JOIN(rows, ISA)}
    ALL_OF(portable),
#if defined(__x86_64__)
    ALL_OF(avx2),
    ALL_OF(avx512),
#endif
};

/* These return 0, or 1 where memory ran out. */
EXPORT int mambaad_scan_forward(const Scan *s, int isa, int64_t threads, Parallel parallel) {
    int64_t width = block_width(s->d, s->b, threads);
    Job job = {s, width, s->b * ceil_div(s->d, width), 0, 0, kernels[isa].forward, forward_scratch(s)};
    return run(&job, threads, parallel);
}

EXPORT int mambaad_scan_backward(const Scan *s, int isa, int64_t threads, Parallel parallel) {
    Job job = {s, BLOCK, s->b * s->groups, 0, 0, kernels[isa].backward, backward_scratch(s)};
    return run(&job, threads, parallel);
}

/* Forward, or backward where s->dx is given. */
EXPORT int mambaad_normed_silu(const Norm *s, int isa, int64_t threads, Parallel parallel) {
    int64_t width = block_width(s->c, s->b, threads);
    Job job = {s, width, s->b * ceil_div(s->c, width), 0, 0, kernels[isa].norm, 16};
    return run(&job, threads, parallel);
}

/* Forward, or backward where g->dx is given. */
EXPORT int mambaad_gated_norm(const Gated *g, int isa, int64_t threads, Parallel parallel) {
    Job job = {g, 0, g->parts, 0, 0, kernels[isa].gated, 16};
    return run(&job, threads, parallel);
}

/* Forward, or the gradient of the weight where s->d_weight is given. */
EXPORT int mambaad_depthwise(const Depthwise *s, int isa, int64_t threads, Parallel parallel) {
    int64_t images = s->d_weight ? s->b : s->b * ceil_div(s->h, BAND), width = block_width(s->c, images, threads);
    Task *task = s->d_weight ? kernels[isa].depthwise_weight : kernels[isa].depthwise;
    Job job = {s, width, images * ceil_div(s->c, width), 0, 0, task, depthwise_scratch(s)};
    return run(&job, threads, parallel);
}

/* Each thread has the same number of tasks where rows are enough: first whole images, then bands of their rows. */
EXPORT int mambaad_inverted(Inverted *s, int isa, int64_t threads, Parallel parallel) {
    int64_t width = s->columns, tiles = 1;
    while (width > 16 && s->wide * s->size * inverted_ring(s, width) > TILE_FLOATS)
        width = ceil_div(s->columns, ++tiles);
    width = ceil_div(width, 8) * 8, tiles = ceil_div(s->columns, width), s->bands = 1;
    while (s->b * tiles * s->bands % threads && s->b * tiles * s->bands < 4 * threads &&
           s->rows / (s->bands + 1) >= FEWEST_ROWS)
        s->bands++;
    Job job = {s, width, s->b * tiles * s->bands, 0, 0, kernels[isa].inverted, inverted_scratch(s, width)};
    return run(&job, threads, parallel);
}

EXPORT int mambaad_nearest(const Nearest *s, int isa, int64_t threads, Parallel parallel) {
    Job job = {s, 0, ceil_div(s->rows, GROUPS * kernels[isa].rows), 0, 0, kernels[isa].nearest,
               (size_t)(GROUPS * MOST_ROWS * s->pairs)};
    return run(&job, threads, parallel);
}
