/* The nearest patches of a memory for one instruction set. */

/* Bit i is set where lengths[i] − 2 products[i] < bound, for LANES floats. */
static inline unsigned FN(below)(const float *products, const float *lengths, float bound) {
    vec squared = FN(load)(lengths, LANES) - 2.0f * FN(load)(products, LANES);
#if defined(AVX512)
    return _mm512_cmp_ps_mask((__m512)squared, _mm512_set1_ps(bound), _CMP_LT_OQ);
#elif defined(AVX2)
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps((__m256)squared, _mm256_set1_ps(bound), _CMP_LT_OQ));
#else
    unsigned found = 0;
    for (int lane = 0; lane < LANES; lane++) found |= (unsigned)(squared[lane] < bound) << lane;
    return found;
#endif
}

/* Keeps the `count` smallest values, smallest first, of which the last one is larger than `value`, and their places. */
static inline void FN(keep)(float value, int32_t place, float *smallest, int32_t *places, int64_t count) {
    int64_t i = count - 1;
    for (; i > 0 && smallest[i - 1] > value; i--) smallest[i] = smallest[i - 1], places[i] = places[i - 1];
    smallest[i] = value, places[i] = place;
}

/* A task is one part of the rows. */
static void FN(nearest)(const void *work, int64_t width, int64_t task, float *scratch) {
    (void)width, (void)scratch;
    const Nearest *s = work;
    for (int64_t row = s->rows * task / s->parts; row < s->rows * (task + 1) / s->parts; row++) {
        const float *products = s->products + row * s->m;
        float smallest[MOST_NEIGHBOURS];
        int32_t places[MOST_NEIGHBOURS];
        for (int64_t i = 0; i < s->count; i++) smallest[i] = __builtin_inff(), places[i] = 0;
        float *bound = &smallest[s->count - 1];
        for (int64_t i = 0; i < s->m; i += LANES) {
            unsigned lanes = ~0u;
            if (i + LANES <= s->m) lanes = FN(below)(products + i, s->lengths + i, *bound);
            for (lanes &= (1ull << smaller(LANES, s->m - i)) - 1; lanes; lanes &= lanes - 1) {
                int64_t place = i + __builtin_ctz(lanes);
                float squared = s->lengths[place] - 2.0f * products[place];
                if (squared < *bound) FN(keep)(squared, (int32_t)place, smallest, places, s->count);
            }
        }
        float sum = 0;
        for (int64_t j = 0; j < s->count; j++) {
            float squared = smallest[j] + s->own[row];
            sum += __builtin_sqrtf(squared > 0 ? squared : 0) / s->spacing[places[j]];
        }
        s->distances[row] = sum / (float)s->count;
    }
}
