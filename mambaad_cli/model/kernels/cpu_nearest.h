/* The nearest patches of a memory for one instruction set: products of integers, and the smallest distances at once, so
   that neither products nor distances are written to memory. Integers of 8 bits are what a memory is stored as; a point
   has 16 bits, or a few less where there are very many channels, so that no sum overflows. A few more than the wanted
   patches are found so, and the nearest of these are told by their distances in float32. */

/* sums + products of two neighbouring 16-bit integers in each 32 bits. */
static inline ivec FN(add_pairs)(ivec sums, ivec x, ivec patches) {
#if defined(AVX512)
    return (ivec)_mm512_add_epi32((__m512i)sums, _mm512_madd_epi16((__m512i)x, (__m512i)patches));
#elif defined(AVX2)
    return (ivec)_mm256_add_epi32((__m256i)sums, _mm256_madd_epi16((__m256i)x, (__m256i)patches));
#elif defined(__SSE2__)
    return (ivec)_mm_add_epi32((__m128i)sums, _mm_madd_epi16((__m128i)x, (__m128i)patches));
#else
    return sums + (x << 16 >> 16) * (patches << 16 >> 16) + (x >> 16) * (patches >> 16);
#endif
}

/* Bit i is set where values[i] < bound. */
static inline unsigned FN(below)(vec values, float bound) {
#if defined(AVX512)
    return _mm512_cmp_ps_mask((__m512)values, _mm512_set1_ps(bound), _CMP_LT_OQ);
#elif defined(AVX2)
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps((__m256)values, _mm256_set1_ps(bound), _CMP_LT_OQ));
#else
    unsigned found = 0;
    for (int lane = 0; lane < LANES; lane++) found |= (unsigned)(values[lane] < bound) << lane;
    return found;
#endif
}

/* Keeps the `count` smallest values, smallest first, of which the last one is larger than `value`, and their places. */
static inline void FN(keep)(float value, int32_t place, float *smallest, int32_t *places, int64_t count) {
    int64_t i = count - 1;
    for (; i > 0 && smallest[i - 1] > value; i--) smallest[i] = smallest[i - 1], places[i] = places[i - 1];
    smallest[i] = value, places[i] = place;
}

/* A point (c) as 16-bit integers, two in each of `pairs` floats' room; returns its step. */
static float FN(quantise)(const float *x, int64_t c, int64_t pairs, float largest, int16_t *to) {
    float most = 1e-20f;
    for (int64_t i = 0; i < c; i++) most = __builtin_fmaxf(most, __builtin_fabsf(x[i]));
    const float step = most / largest;
    for (int64_t i = 0; i < 2 * pairs; i++) to[i] = i < c ? (int16_t)__builtin_lrintf(x[i] / step) : 0;
    return step;
}

enum { FN(rows) = ROWS };

/* ROWS points against one panel of patches: squared distances without the points' own squared lengths. */
static inline __attribute__((always_inline)) void FN(compare)(const Nearest *s, const int32_t *points,
                                                              const float *steps, int64_t panel, float *smallest,
                                                              int32_t *places) {
    ivec sums[ROWS * (PANEL / LANES)];
#pragma GCC unroll 64
    for (int i = 0; i < ROWS * (PANEL / LANES); i++) sums[i] = (ivec){0};
    const int32_t *patches = (const int32_t *)s->patches + panel * s->pairs * PANEL;
    for (int64_t k = 0; k < s->pairs; k++, patches += PANEL) {
        ivec taken[PANEL / LANES];
#pragma GCC unroll 8
        for (int v = 0; v < PANEL / LANES; v++) taken[v] = *(const ivec *)(patches + v * LANES);
#pragma GCC unroll 32
        for (int i = 0; i < ROWS; i++) {
            const ivec x = points[i * s->pairs + k] - (ivec){0};
#pragma GCC unroll 8
            for (int v = 0; v < PANEL / LANES; v++)
                sums[i * (PANEL / LANES) + v] = FN(add_pairs)(sums[i * (PANEL / LANES) + v], x, taken[v]);
        }
    }
#pragma GCC unroll 64
    for (int i = 0; i < ROWS * (PANEL / LANES); i++) {
        const int row = i / (PANEL / LANES);
        const int64_t first = panel * PANEL + i % (PANEL / LANES) * LANES;
        vec dots = __builtin_convertvector(sums[i], vec) * at(s->steps + first);
        union {
            vec all;
            float each[LANES];
        } squared = {at(s->lengths + first) - 2.0f * steps[row] * dots};
        float *bound = smallest + row * s->kept + s->kept - 1;
        unsigned lanes = FN(below)(squared.all, *bound);
        for (; lanes; lanes &= lanes - 1) {
            const int lane = __builtin_ctz(lanes);
            if (squared.each[lane] < *bound)
                FN(keep)(squared.each[lane], (int32_t)(first + lane), smallest + row * s->kept,
                         places + row * s->kept, s->kept);
        }
    }
}

/* Distance of two vectors of c floats. */
static float FN(distance)(const float *x, const float *y, int64_t c) {
    vec sums = splat(0.0f);
    for (int64_t i = 0; i < c; i += LANES) {
        const vec apart = FN(load)(x + i, c - i) - FN(load)(y + i, c - i);
        sums += apart * apart;
    }
    return __builtin_sqrtf(FN(total)(sums));
}

/* Mean of the distances of a point to the `count` nearest of the patches kept, in units of their spacing. */
static float FN(mean_distance)(const Nearest *s, const float *x, const int32_t *kept) {
    float nearest[MOST_NEIGHBOURS], sum = 0;
    int32_t places[MOST_NEIGHBOURS];
    for (int64_t j = 0; j < s->count; j++) nearest[j] = __builtin_inff(), places[j] = 0;
    for (int64_t j = 0; j < s->kept; j++) {
        const float distance = FN(distance)(x, s->originals + kept[j] * s->c, s->c);
        if (distance < nearest[s->count - 1]) FN(keep)(distance, kept[j], nearest, places, s->count);
    }
    for (int64_t j = 0; j < s->count; j++) sum += nearest[j] / s->spacing[places[j]];
    return sum / (float)s->count;
}

/* A task is GROUPS times ROWS points, which stay in the nearest cache while all patches go by. */
static void FN(nearest)(const void *work, int64_t width, int64_t task, float *scratch) {
    (void)width;
    const Nearest *s = work;
    float steps[GROUPS * MOST_ROWS], smallest[GROUPS * MOST_ROWS * MOST_NEIGHBOURS];
    int32_t places[GROUPS * MOST_ROWS * MOST_NEIGHBOURS];
    const int64_t first = task * GROUPS * ROWS, count = smaller(GROUPS * ROWS, s->rows - first);
    const int64_t groups = ceil_div(count, ROWS);
    memset(scratch, 0, groups * ROWS * s->pairs * sizeof(int32_t));
    memset(steps, 0, sizeof steps);
    for (int64_t i = 0; i < groups * ROWS * s->kept; i++) smallest[i] = __builtin_inff(), places[i] = 0;
    for (int64_t i = 0; i < count; i++)
        steps[i] = FN(quantise)(s->points + (first + i) * s->c, s->c, s->pairs, (float)s->largest,
                                (int16_t *)scratch + i * s->pairs * 2);
    for (int64_t panel = 0; panel < ceil_div(s->m, PANEL); panel++)
        for (int64_t group = 0; group < groups; group++)
            FN(compare)(s, (const int32_t *)scratch + group * ROWS * s->pairs, steps + group * ROWS, panel,
                        smallest + group * ROWS * s->kept, places + group * ROWS * s->kept);
    for (int64_t i = 0; i < count; i++)
        s->distances[first + i] = FN(mean_distance)(s, s->points + (first + i) * s->c, places + i * s->kept);
}
