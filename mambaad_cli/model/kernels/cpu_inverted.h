/* One block of EfficientNet-lite for one instruction set: expansion (in the first block the stem), depthwise
   convolution and projection in one pass, ReLU6 behind the first two. The expanded channels are never written to
   memory: a ring of as many rows of them as the filter is high lies in the cache.

   Channels lie in panels of PANEL, so that a panel of a row, (columns, PANEL), is read as it lies by the products and
   by the depthwise convolution. */

#define PARTS (PANEL / LANES)
#define SUMS (ROWS * PARTS)
#define EIGHT 8
#if LANES < EIGHT
#define NARROW LANES
#else
#define NARROW EIGHT
#endif
typedef float FN(few) __attribute__((vector_size(4 * NARROW)));

static inline vec FN(relu6)(vec x) {
#if defined(AVX512)
    return (vec)_mm512_min_ps(_mm512_max_ps((__m512)x, _mm512_setzero_ps()), _mm512_set1_ps(6.0f));
#elif defined(AVX2)
    return (vec)_mm256_min_ps(_mm256_max_ps((__m256)x, _mm256_setzero_ps()), _mm256_set1_ps(6.0f));
#else
    x = FN(pick)(x > splat(0.0f), x, splat(0.0f));
    return FN(pick)(x < splat(6.0f), x, splat(6.0f));
#endif
}

/* Products of `rows` columns of a row (panels `apart` floats apart, `depth` channels in all) with `parts` vectors of
   one panel of weights (depth, PANEL), on top of the bias. */
static inline __attribute__((always_inline)) void FN(products)(const int rows, const int parts, const float *x,
                                                               int64_t apart, int64_t depth, const float *weight,
                                                               const float *bias, vec *sums) {
#pragma GCC unroll 32
    for (int i = 0; i < rows * parts; i++) sums[i] = at(bias + i % parts * LANES);
    for (; depth > 0; depth -= PANEL, x += apart) {
        const int64_t count = smaller(depth, PANEL);
        for (int64_t k = 0; k < count; k++, weight += PANEL) {
            vec taken[PARTS];
#pragma GCC unroll 8
            for (int v = 0; v < parts; v++) taken[v] = at(weight + v * LANES);
#pragma GCC unroll 32
            for (int i = 0; i < rows; i++) {
                vec one = splat(x[i * PANEL + k]);
#pragma GCC unroll 8
                for (int v = 0; v < parts; v++) sums[i * parts + v] += one * taken[v];
            }
        }
    }
}

/* The 27 values under the stem's filter, normalised, zeros around the image: for columns `from` to `end` of row `y` of
   its result, in panels. */
static void FN(gather_stem)(const Inverted *s, int64_t image, int64_t y, int64_t from, int64_t end, int64_t apart,
                            float *to) {
    const int64_t length = 2 * (end - from) + 1, start = 2 * from - s->stem_left;
    float *rows = to + 2 * apart; /* (9, length): those of each channel that are under the filter */
    for (int64_t k = 0; k < 9; k++) {
        const int64_t channel = k / 3, row = 2 * y - s->stem_top + k % 3;
        const float *x = s->x + ((image * 3 + channel) * s->stem_h + row) * s->stem_w + start;
        const float mean = s->mean[channel], scale = s->scale[channel];
        const int64_t first = row < 0 || row >= s->stem_h ? length : start < 0 ? -start : 0;
        const int64_t last = smaller(length, s->stem_w - start);
        float *out = rows + k * length;
        for (int64_t i = 0; i < smaller(first, length); i++) out[i] = 0;
        for (int64_t i = first; i < last; i++) out[i] = (x[i] - mean) * scale;
        for (int64_t i = last < first ? first : last; i < length; i++) out[i] = 0;
    }
    for (int64_t column = 0; column < end - from; column++, rows += 2, to += PANEL)
#pragma GCC unroll 32
        for (int k = 0; k < 27; k++) to[k / PANEL * apart + k % PANEL] = rows[k / 3 * length + k % 3];
}

/* Columns `from` to `end` of row `y` of the block's input, in panels. */
static void FN(gather)(const Inverted *s, int64_t image, int64_t y, int64_t from, int64_t end, int64_t apart,
                       float *to) {
    if (s->stem) {
        FN(gather_stem)(s, image, y, from, end, apart, to);
        return;
    }
    for (int64_t column = from; column < end; column++, to += PANEL) {
        const float *x = s->x + ((image * s->h + y) * s->w + column) * s->c;
        for (int64_t channel = 0; channel < s->c; channel += EIGHT) { /* c is a multiple of it */
            float *out = to + channel / PANEL * apart + channel % PANEL;
#pragma GCC unroll 8
            for (int i = 0; i < EIGHT; i += NARROW) *(FN(few) *)(out + i) = *(const FN(few) *)(x + channel + i);
        }
    }
}

/* What a task holds in its scratch; see inverted_scratch. */
typedef struct {
    int64_t first, last;   /* columns of the input, without the zeros around it */
    int64_t width;         /* columns of a row of the ring */
    int64_t before;        /* zeros before column `first` */
    int64_t gathered_apart, wide_apart;
    float *ring, *gathered, *convolved;
} FN(Tile);

/* Row `y` of the input, expanded, into its place in the ring. */
static void FN(expand)(const Inverted *s, const FN(Tile) *t, int64_t image, int64_t y) {
    const int64_t slot = (y + 8 * s->size) % s->size, length = t->last - t->first;
    float *ring = t->ring + slot * t->width * PANEL;
    const int64_t panels = s->wide / PANEL, apart = s->size * t->width * PANEL;
    if (y < 0 || y >= s->h) {
        for (int64_t panel = 0; panel < panels; panel++)
            memset(ring + panel * apart, 0, t->width * PANEL * sizeof(float));
        return;
    }
    FN(gather)(s, image, y, t->first, t->last, t->gathered_apart, t->gathered);
    for (int64_t panel = 0; panel < panels; panel++) {
        float *to = ring + panel * apart;
        memset(to, 0, t->before * PANEL * sizeof(float));
        memset(to + (t->before + length) * PANEL, 0, (t->width - t->before - length) * PANEL * sizeof(float));
        to += t->before * PANEL;
        for (int64_t column = 0; column < length; column += ROWS) {
            vec sums[SUMS];
            FN(products)(ROWS, PARTS, t->gathered + column * PANEL, t->gathered_apart, s->c,
                         s->expand + panel * s->c * PANEL, s->expand_bias + panel * PANEL, sums);
            if (length - column >= ROWS)
#pragma GCC unroll 32
                for (int i = 0; i < SUMS; i++) put(to + column * PANEL + i * LANES, FN(relu6)(sums[i]));
            else
#pragma GCC unroll 32
                for (int i = 0; i < SUMS; i++)
                    if (i < (length - column) * PARTS) put(to + column * PANEL + i * LANES, FN(relu6)(sums[i]));
        }
    }
}

/* Row `y` of the result of the depthwise convolution, `columns` of it, in panels. */
static inline __attribute__((always_inline)) void FN(deepen)(const int size, const int stride, const Inverted *s,
                                                             const FN(Tile) *t, int64_t y, int64_t columns) {
    const int64_t panels = s->wide / PANEL;
    for (int64_t panel = 0; panel < panels; panel++) {
        const float *rows[5];
        for (int j = 0; j < size; j++) {
            int64_t slot = (y * stride - s->top + j + 8 * size) % size;
            rows[j] = t->ring + (panel * size + slot) * t->width * PANEL;
        }
        for (int v = 0; v < PARTS; v++) {
            const float *taps = s->taps + panel * size * size * PANEL + v * LANES;
            const vec bias = at(s->taps_bias + panel * PANEL + v * LANES);
            float *to = t->convolved + panel * t->wide_apart + v * LANES;
            for (int64_t column = 0; column < columns; column += NEAR) {
                vec found[NEAR];
#pragma GCC unroll 8
                for (int i = 0; i < NEAR; i++) found[i] = bias;
#pragma GCC unroll 5
                for (int row = 0; row < size; row++) {
                    vec tap[5];
#pragma GCC unroll 5
                    for (int j = 0; j < size; j++) tap[j] = at(taps + (row * size + j) * PANEL);
                    const float *from = rows[row] + column * stride * PANEL + v * LANES;
#pragma GCC unroll 16
                    for (int i = 0; i < (NEAR - 1) * stride + size; i++) {
                        vec x = at(from + i * PANEL);
#pragma GCC unroll 5
                        for (int j = 0; j < size; j++)
                            if (i >= j && (i - j) % stride == 0 && (i - j) / stride < NEAR)
                                found[(i - j) / stride] += tap[j] * x;
                    }
                }
#pragma GCC unroll 8
                for (int i = 0; i < NEAR; i++) put(to + (column + i) * PANEL, FN(relu6)(found[i]));
            }
        }
    }
}

/* One panel of channels, or the first `parts` vectors of it, of `columns` of a row of the block's result. */
static inline __attribute__((always_inline)) void FN(project_panel)(const int rows, const int parts, const Inverted *s,
                                                                    const FN(Tile) *t, int64_t start, int64_t channel,
                                                                    int64_t columns) {
    const float *weight = s->project + channel * s->wide, *bias = s->project_bias + channel;
    const int64_t valid = s->narrow - channel; /* a multiple of eight */
    for (int64_t column = 0; column < columns; column += rows) {
        vec sums[2 * SUMS];
        FN(products)(rows, parts, t->convolved + column * PANEL, t->wide_apart, s->wide, weight, bias, sums);
#pragma GCC unroll 32
        for (int i = 0; i < rows * parts; i++) {
            const int64_t place = start + (column + i / parts) * s->narrow + channel + i % parts * LANES;
            if (column + i / parts >= columns) break;
#if LANES > EIGHT
            if (s->shortcut) sums[i] += FN(load)(s->x + place, valid);
            FN(store)(s->y + place, sums[i], valid);
#else
            (void)valid;
            if (s->shortcut) sums[i] += at(s->x + place);
            put(s->y + place, sums[i]);
#endif
        }
    }
}

/* `columns` of row `y` of the block's result from column `from` on. */
static void FN(project)(const Inverted *s, const FN(Tile) *t, int64_t image, int64_t y, int64_t from,
                        int64_t columns) {
    const int64_t start = ((image * s->rows + y) * s->columns + from) * s->narrow;
    int64_t channel = 0;
    for (; channel + PANEL <= s->narrow; channel += PANEL) FN(project_panel)(ROWS, PARTS, s, t, start, channel, columns);
    if (channel == s->narrow) return;
#if LANES > EIGHT
    FN(project_panel)(ROWS, PARTS, s, t, start, channel, columns);
#else
    FN(project_panel)(2 * ROWS, PARTS / 2, s, t, start, channel, columns);
#endif
}

/* A task is one image, a band of rows and a tile of columns of the result. */
static void FN(inverted)(const void *work, int64_t width, int64_t task, float *scratch) {
    const Inverted *s = work;
    const int64_t tiles = ceil_div(s->columns, width);
    const int64_t from = task % tiles * width, columns = smaller(width, s->columns - from);
    const int64_t band = task / tiles % s->bands, image = task / tiles / s->bands;
    const int64_t end = s->rows * (band + 1) / s->bands, start = from * s->stride - s->left;
    FN(Tile) t;
    t.width = inverted_ring(s, width), t.wide_apart = inverted_padded(width) * PANEL;
    t.gathered_apart = (t.width + MOST_ROWS) * PANEL;
    t.first = start < 0 ? 0 : start, t.last = smaller(s->w, start + (columns - 1) * s->stride + s->size);
    t.before = t.first - start;
    t.ring = scratch, t.convolved = t.ring + s->wide * s->size * t.width;
    t.gathered = t.convolved + s->wide * inverted_padded(width);
    int64_t ready = s->rows * band / s->bands * s->stride - s->top; /* the first row that is not in the ring */
    for (int64_t y = s->rows * band / s->bands; y < end; y++) {
        for (; ready < y * s->stride - s->top + s->size; ready++) FN(expand)(s, &t, image, ready);
        if (s->size == 3 && s->stride == 1) FN(deepen)(3, 1, s, &t, y, columns);
        else if (s->size == 3) FN(deepen)(3, 2, s, &t, y, columns);
        else if (s->stride == 1) FN(deepen)(5, 1, s, &t, y, columns);
        else FN(deepen)(5, 2, s, &t, y, columns);
        FN(project)(s, &t, image, y, from, columns);
    }
}

#undef PARTS
#undef SUMS
#undef EIGHT
#undef NARROW
