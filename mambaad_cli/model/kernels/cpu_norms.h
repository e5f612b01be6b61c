/* The normalisations with SiLU for one instruction set. */

/* InstanceNorm and SiLU of (b, l, c), and back. */

/* One image's `count` channels, in `vecs` (a constant) vectors. Moments are those of tiles, which stay in the nearest
   cache for their deviation, put together (Chan, Golub, LeVeque, 1979). */
static inline __attribute__((always_inline)) void FN(norm_columns)(const int vecs, const Norm *s, int64_t image,
                                                                   int64_t channel, int64_t count) {
    const float *x = s->x + image * s->l * s->c + channel;
    float *y = s->y + image * s->l * s->c + channel, *moments = s->moments + image * 2 * s->c + channel;
    vec mean[4], scale[4];
    for (int v = 0; v < vecs; v++) mean[v] = scale[v] = splat(0.0f);
    for (int64_t from = 0; from < s->l; from += TILE) {
        int64_t end = smaller(from + TILE, s->l);
        vec own[4], squares[4];
        for (int v = 0; v < vecs; v++) own[v] = squares[v] = splat(0.0f);
        for (int64_t t = from; t < end; t++)
#pragma GCC unroll 4
            for (int v = 0; v < vecs; v++) own[v] += FN(load)(x + t * s->c + v * LANES, count - v * LANES);
        for (int v = 0; v < vecs; v++) own[v] /= (float)(end - from);
        for (int64_t t = from; t < end; t++)
#pragma GCC unroll 4
            for (int v = 0; v < vecs; v++) {
                vec offset = FN(load)(x + t * s->c + v * LANES, count - v * LANES) - own[v];
                squares[v] += offset * offset;
            }
        float share = (float)(end - from) / (float)end;
        for (int v = 0; v < vecs; v++) {
            vec offset = own[v] - mean[v];
            mean[v] += offset * share;
            scale[v] += squares[v] + offset * offset * (share * (float)from);
        }
    }
    for (int v = 0; v < vecs; v++) scale[v] /= (float)s->l;
    for (int v = 0; v < vecs; v++) {
        for (int lane = 0; lane < LANES; lane++) scale[v][lane] = 1.0f / __builtin_sqrtf(scale[v][lane] + 1e-5f);
        FN(store)(moments + v * LANES, mean[v], count - v * LANES);
        FN(store)(moments + s->c + v * LANES, scale[v], count - v * LANES);
    }
    for (int64_t t = 0; t < s->l; t++)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++) {
            int64_t cell = t * s->c + v * LANES;
            vec normed = (FN(load)(x + cell, count - v * LANES) - mean[v]) * scale[v];
            FN(store)(y + cell, normed * FN(sigmoid)(normed), count - v * LANES);
        }
}

static inline __attribute__((always_inline)) void FN(norm_columns_back)(const int vecs, const Norm *s, int64_t image,
                                                                        int64_t channel, int64_t count) {
    int64_t start = image * s->l * s->c + channel;
    const float *x = s->x + start, *dy = s->dy + start, *moments = s->moments + image * 2 * s->c + channel;
    float *dx = s->dx + start;
    vec mean[4], scale[4], sum[4], product[4];
    for (int v = 0; v < vecs; v++) {
        mean[v] = FN(load)(moments + v * LANES, count - v * LANES);
        scale[v] = FN(load)(moments + s->c + v * LANES, count - v * LANES);
        sum[v] = product[v] = splat(0.0f);
    }
    for (int64_t from = 0; from < s->l; from += TILE) {
        vec sums[4], products[4];
        for (int v = 0; v < vecs; v++) sums[v] = products[v] = splat(0.0f);
        for (int64_t t = from; t < smaller(from + TILE, s->l); t++)
#pragma GCC unroll 4
            for (int v = 0; v < vecs; v++) {
                int64_t cell = t * s->c + v * LANES, here = count - v * LANES;
                vec normed = (FN(load)(x + cell, here) - mean[v]) * scale[v], share = FN(sigmoid)(normed);
                vec d_normed = FN(load)(dy + cell, here) * share * (1.0f + normed * (1.0f - share));
                FN(store)(dx + cell, d_normed, here);
                sums[v] += d_normed;
                products[v] += d_normed * normed;
            }
        for (int v = 0; v < vecs; v++) {
            sum[v] += sums[v] / (float)s->l;
            product[v] += products[v] / (float)s->l;
        }
    }
    for (int64_t t = 0; t < s->l; t++)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++) {
            int64_t cell = t * s->c + v * LANES, here = count - v * LANES;
            vec normed = (FN(load)(x + cell, here) - mean[v]) * scale[v];
            FN(store)(dx + cell, scale[v] * (FN(load)(dx + cell, here) - sum[v] - normed * product[v]), here);
        }
}

static inline __attribute__((always_inline)) void FN(norm_some)(const int vecs, const Norm *s, int64_t image,
                                                                int64_t channel, int64_t count) {
    if (s->dx)
        FN(norm_columns_back)(vecs, s, image, channel, count);
    else
        FN(norm_columns)(vecs, s, image, channel, count);
}

static void FN(norm)(const void *work, int64_t width, int64_t task, float *scratch) {
    (void)scratch;
    const Norm *s = work;
    int64_t blocks = ceil_div(s->c, width), image = task / blocks, channel = task % blocks * width;
    int64_t end = smaller(channel + width, s->c);
    for (; channel < end; channel += 4 * LANES) {
        int64_t count = smaller(end - channel, 4 * LANES);
        switch (ceil_div(count, LANES)) {
        case 1: FN(norm_some)(1, s, image, channel, count); break;
        case 2: FN(norm_some)(2, s, image, channel, count); break;
        case 3: FN(norm_some)(3, s, image, channel, count); break;
        default: FN(norm_some)(4, s, image, channel, count);
        }
    }
}

/* LayerNorm times SiLU of a gate, row by row of (rows, c), and back. */

/* x − mean of the first `count` floats at p, zeros beyond. */
static inline vec FN(offset)(const float *p, int64_t count, float mean) {
    static const float ones[LANES] = {[0 ... LANES - 1] = 1.0f};
    if (count >= LANES) return FN(load)(p, count) - mean;
    return (FN(load)(p, count) - mean) * FN(load)(ones, count);
}

/* One row of c: x, gate to y, and the moments of x. */
static inline void FN(gated_row)(const Gated *g, int64_t row) {
    int64_t c = g->c;
    const float *x = g->x + row * c, *gate = g->gate + row * c;
    vec sum = splat(0.0f), squares = splat(0.0f);
    for (int64_t i = 0; i < c; i += LANES) sum += FN(load)(x + i, c - i);
    float mean = FN(total)(sum) / (float)c;
    for (int64_t i = 0; i < c; i += LANES) {
        vec offset = FN(offset)(x + i, c - i, mean);
        squares += offset * offset;
    }
    float scale = 1.0f / __builtin_sqrtf(FN(total)(squares) / (float)c + 1e-5f);
    g->moments[row * 2] = mean, g->moments[row * 2 + 1] = scale;
    for (int64_t i = 0; i < c; i += LANES) {
        vec in = FN(load)(gate + i, c - i), normed = (FN(load)(x + i, c - i) - mean) * scale;
        vec affine = normed * FN(load)(g->weight + i, c - i) + FN(load)(g->bias + i, c - i);
        FN(store)(g->y + row * c + i, affine * in * FN(sigmoid)(in), c - i);
    }
}

/* dy of one row to dx and d_gate; adds to d_weight and d_bias. */
static inline void FN(gated_row_back)(const Gated *g, int64_t row, float *d_weight, float *d_bias) {
    int64_t c = g->c;
    const float *x = g->x + row * c, *gate = g->gate + row * c, *dy = g->dy + row * c;
    float *dx = g->dx + row * c, mean = g->moments[row * 2], scale = g->moments[row * 2 + 1];
    vec sum = splat(0.0f), product = splat(0.0f);
    for (int64_t i = 0; i < c; i += LANES) {
        int64_t here = c - i;
        vec in = FN(load)(gate + i, here), share = FN(sigmoid)(in), out = FN(load)(dy + i, here);
        vec normed = FN(offset)(x + i, here, mean) * scale, weight = FN(load)(g->weight + i, here);
        vec affine = normed * weight + FN(load)(g->bias + i, here), d_affine = out * in * share;
        FN(store)(g->d_gate + row * c + i, out * affine * share * (1.0f + in * (1.0f - share)), here);
        FN(store)(d_weight + i, FN(load)(d_weight + i, here) + d_affine * normed, here);
        FN(store)(d_bias + i, FN(load)(d_bias + i, here) + d_affine, here);
        vec d_normed = d_affine * weight;
        FN(store)(dx + i, d_normed, here);
        sum += d_normed;
        product += d_normed * normed;
    }
    float mean_of = FN(total)(sum) / (float)c, along = FN(total)(product) / (float)c;
    for (int64_t i = 0; i < c; i += LANES) {
        vec normed = (FN(load)(x + i, c - i) - mean) * scale;
        FN(store)(dx + i, scale * (FN(load)(dx + i, c - i) - mean_of - normed * along), c - i);
    }
}

static void FN(gated)(const void *work, int64_t width, int64_t task, float *scratch) {
    (void)width, (void)scratch;
    const Gated *g = work;
    int64_t row = g->rows * task / g->parts, end = g->rows * (task + 1) / g->parts;
    if (!g->dx) {
        for (; row < end; row++) FN(gated_row)(g, row);
        return;
    }
    float *d_weight = g->d_affine + task * 2 * g->c, *d_bias = d_weight + g->c;
    memset(d_weight, 0, 2 * g->c * sizeof(float));
    for (; row < end; row++) FN(gated_row_back)(g, row, d_weight, d_bias);
}
