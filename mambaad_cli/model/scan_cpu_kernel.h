/* The kernel for one instruction set: scan_cpu.c includes this with ISA (its name), LANES (floats of a vector) and
   GROUP (states whose recurrence is kept in registers at once) set. Rows of scratch are BLOCK floats long; lanes
   beyond the last channel hold zeros and change nothing. */

typedef float FN(vec) __attribute__((vector_size(4 * LANES)));
typedef int32_t FN(ivec) __attribute__((vector_size(4 * LANES)));
#define vec FN(vec)
#define ivec FN(ivec)

static inline vec FN(splat)(float x) { return x - (vec){0}; }
static inline vec FN(at)(const float *p) { return *(const vec *)p; }
static inline void FN(put)(float *p, vec x) { *(vec *)p = x; }
#define splat FN(splat)
#define at FN(at)
#define put FN(put)

static inline vec FN(pick)(ivec where, vec yes, vec no) { return (vec)((where & (ivec)yes) | (~where & (ivec)no)); }

/* 2^x for x <= 0, relative error 1e-7: the fraction by a polynomial that is exact at both ends of [0, 1], so that slow
   decays, just under 1, stay slow. Smaller than 2^-126 becomes 0. */
static inline vec FN(exp2)(vec x) {
    const float p[] = {0.0018793186f, 0.0089909952f, 0.055818676f, 0.24015927f, 0.69315174f, 1.0f};
#ifdef AVX512
    vec f = (vec)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF);
#else
    x = FN(pick)(x < splat(-126.0f), splat(-127.0f), x);
    vec whole = x + splat(12582912.0f); /* 1.5 * 2^23: what is added is rounded to a whole number */
    ivec exponent = (ivec)whole;
    vec rounded = whole - splat(12582912.0f);
    ivec above = rounded > x; /* round down: -1 where rounding went up */
    exponent += above;
    vec f = x - (rounded + __builtin_convertvector(above, vec));
#endif
    vec y = f * p[0] + p[1];
    y = y * f + p[2];
    y = y * f + p[3];
    y = y * f + p[4];
    y = y * f + p[5];
#ifdef AVX512
    return (vec)_mm512_scalef_ps((__m512)y, (__m512)x);
#else
    ivec scale = ((exponent + 127) << 23); /* the bits above the eighth fall out */
    return y * (vec)scale;
#endif
}

/* log(1 + e^x), relative error 1e-7; `decay` becomes e^-|x|. */
static inline vec FN(softplus)(vec x, vec *decay) {
    const float p[] = {0.005232673f,  -0.029505154f, 0.078225813f, -0.13663233f, 0.19106001f,
                       -0.248429806f, 0.333190966f,  -0.49999493f, 1.0f};
    vec positive = FN(pick)(x > splat(0.0f), x, splat(0.0f));
    vec e = FN(exp2)((x - 2.0f * positive) * 1.44269504f);
    vec log1p = splat(p[0]);
    for (int i = 1; i < 9; i++) log1p = log1p * e + p[i];
    *decay = e;
    return positive + e * log1p;
}

/* Copies of a row's `count` floats to and from scratch, padded with zeros to whole vectors. */
static inline void FN(read_row)(float *to, const float *from, int64_t count, int64_t padded) {
    if (count == padded) {
        for (int64_t i = 0; i < count; i += LANES) {
            vec x;
            memcpy(&x, from + i, sizeof x);
            put(to + i, x);
        }
        return;
    }
    memset(to + count, 0, (padded - count) * sizeof(float));
    memcpy(to, from, count * sizeof(float));
}

static inline void FN(write_row)(float *to, const float *from, int64_t count, int add) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        vec x = at(from + i), old;
        memcpy(&old, to + i, sizeof old);
        if (add) x += old;
        memcpy(to + i, &x, sizeof x);
    }
    for (; i < count; i++) to[i] = add ? to[i] + from[i] : from[i];
}

/* A walk jumps about in memory, where no hardware guesses the next row: ask for it a few positions ahead. */
static inline void FN(prefetch)(const float *row, int64_t count) {
    for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(row + i);
}

/* What stays the same along one walk: (n, BLOCK) A, times `factor`, (r, BLOCK) dt_weight, (BLOCK) dt_bias. */
static void FN(read_constants)(const Scan *s, int64_t k, int64_t channel, int64_t count, float factor, float *A,
                               float *weight, float *bias) {
    memset(A, 0, s->n * BLOCK * sizeof(float));
    memset(weight, 0, s->r * BLOCK * sizeof(float));
    memset(bias, 0, BLOCK * sizeof(float));
    for (int64_t c = 0; c < count; c++) {
        int64_t row = k * s->d + channel + c;
        for (int64_t i = 0; i < s->n; i++) A[i * BLOCK + c] = s->A[row * s->n + i] * factor;
        for (int64_t j = 0; j < s->r; j++) weight[j * BLOCK + c] = s->dt_weight[row * s->r + j];
        bias[c] = s->dt_bias[row];
    }
}

/* dt before softplus at one position, for the vector of channels at `weight` and `bias`. */
static inline vec FN(project_dt)(const float *x, const float *weight, const float *bias, int64_t r) {
    vec even = at(bias), odd = {0};
    int64_t j = 0;
    for (; j + 2 <= r; j += 2) {
        even += at(weight + j * BLOCK) * x[j];
        odd += at(weight + (j + 1) * BLOCK) * x[j + 1];
    }
    if (j < r) even += at(weight + j * BLOCK) * x[j];
    return even + odd;
}

/* The recurrence of `count` (a constant) states over a tile, for one vector of channels:
   h = 2^(dt A) h + (dt u) B, y = C h. h stays in registers. */
static inline __attribute__((always_inline)) void FN(recur)(const int count, int64_t length, const float *A, float *h,
                                                            const float *dt, const float *dtu, const float **rows,
                                                            int64_t n, float *y, int add) {
    vec H[GROUP];
#pragma GCC unroll 16
    for (int i = 0; i < count; i++) H[i] = at(h + i * BLOCK);
    for (int64_t t = 0; t < length; t++) {
        vec step = at(dt + t * BLOCK), input = at(dtu + t * BLOCK), even = {0}, odd = {0};
        const float *B = rows[t], *C = rows[t] + n;
#pragma GCC unroll 16
        for (int i = 0; i < count; i++) {
            H[i] = FN(exp2)(step * at(A + i * BLOCK)) * H[i] + input * B[i];
            if (i % 2)
                odd += H[i] * C[i];
            else
                even += H[i] * C[i];
        }
        even += odd;
        if (add) even += at(y + t * BLOCK);
        put(y + t * BLOCK, even);
    }
#pragma GCC unroll 16
    for (int i = 0; i < count; i++) put(h + i * BLOCK, H[i]);
}

static void FN(forward)(const Scan *s, int64_t width, int64_t task, float *scratch) {
    int64_t blocks = ceil_div(s->d, width), image = task / blocks, channel = task % blocks * width;
    int64_t count = smaller(width, s->d - channel), padded = ceil_div(count, LANES) * LANES;
    int64_t row_length = s->r + 2 * s->n, tiles = ceil_div(s->l, TILE);
    float *dt = scratch, *dtu = dt + TILE * BLOCK, *y = dtu + TILE * BLOCK, *u = y + TILE * BLOCK;
    float *A = u + TILE * BLOCK, *h = A + s->n * BLOCK, *weight = h + s->n * BLOCK, *bias = weight + s->r * BLOCK;
    float *skip = bias + BLOCK;
    memset(skip, 0, BLOCK * sizeof(float));
    for (int64_t k = 0; k < s->k; k++)
        for (int64_t c = 0; c < count; c++) skip[c] += s->D[k * s->d + channel + c];
    const float *rows[TILE];
    for (int64_t k = 0; k < s->k; k++) {
        FN(read_constants)(s, k, channel, count, 1.44269504f, A, weight, bias);
        memset(h, 0, s->n * BLOCK * sizeof(float));
        for (int64_t tile = 0; tile < tiles; tile++) {
            const int32_t *walk = s->order + k * s->l + tile * TILE;
            int64_t length = smaller(TILE, s->l - tile * TILE);
            if (s->border)
                for (int64_t i = 0; i < s->n; i++)
                    memcpy(s->border + (((image * s->k + k) * tiles + tile) * s->n + i) * s->d + channel,
                           h + i * BLOCK, count * sizeof(float));
            for (int64_t t = 0; t < length; t++) {
                int64_t position = image * s->l + walk[t];
                const float *x = s->x + (position * s->k + k) * row_length;
                rows[t] = x + s->r;
                if (tile * TILE + t + AHEAD < s->l) {
                    int64_t next = image * s->l + walk[t + AHEAD];
                    FN(prefetch)(s->x + (next * s->k + k) * row_length, row_length);
                    FN(prefetch)(s->u + next * s->d + channel, count);
                }
                FN(prefetch)(s->y + position * s->d + channel, count);
                FN(read_row)(u + t * BLOCK, s->u + position * s->d + channel, count, padded);
                for (int64_t v = 0; v < padded; v += LANES) {
                    vec decay, step = FN(softplus)(FN(project_dt)(x, weight + v, bias + v, s->r), &decay);
                    put(dt + t * BLOCK + v, step);
                    put(dtu + t * BLOCK + v, step * at(u + t * BLOCK + v));
                }
            }
            for (int64_t v = 0; v < padded; v += LANES) {
                int64_t i = 0;
                for (; i + GROUP <= s->n; i += GROUP) {
                    FN(recur)(GROUP, length, A + i * BLOCK + v, h + i * BLOCK + v, dt + v, dtu + v, rows, s->n, y + v,
                              i > 0);
                    for (int64_t t = 0; t < length; t++) rows[t] += GROUP;
                }
                for (; i < s->n; i++) {
                    FN(recur)(1, length, A + i * BLOCK + v, h + i * BLOCK + v, dt + v, dtu + v, rows, s->n, y + v,
                              i > 0);
                    for (int64_t t = 0; t < length; t++) rows[t] += 1;
                }
                for (int64_t t = 0; t < length; t++) rows[t] -= s->n;
            }
            for (int64_t t = 0; t < length; t++) {
                if (k == 0)
                    for (int64_t v = 0; v < padded; v += LANES)
                        put(y + t * BLOCK + v, at(y + t * BLOCK + v) + at(skip + v) * at(u + t * BLOCK + v));
                FN(write_row)(s->y + (image * s->l + walk[t]) * s->d + channel, y + t * BLOCK, count, k > 0);
            }
        }
    }
}

/* sums[i] (+)= the sum over the lanes of vectors[i]. */
static inline void FN(sum_lanes)(const float *vectors, int64_t count, float *sums, int add) {
    int64_t i = 0;
#ifdef AVX512
    const __m512i low8 = _mm512_set_epi32(23, 22, 21, 20, 19, 18, 17, 16, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i high8 = _mm512_add_epi32(low8, _mm512_set1_epi32(8));
    const __m512i low4 = _mm512_set_epi32(27, 26, 25, 24, 11, 10, 9, 8, 19, 18, 17, 16, 3, 2, 1, 0);
    const __m512i high4 = _mm512_add_epi32(low4, _mm512_set1_epi32(4));
    for (; i < count; i += 16) { /* a transposition that adds: each step halves vectors and spread */
        __m512 a[16];
        for (int j = 0; j < 16; j++) a[j] = i + j < count ? _mm512_load_ps(vectors + (i + j) * 16) : _mm512_setzero_ps();
        for (int j = 0; j < 8; j++)
            a[j] = _mm512_add_ps(_mm512_permutex2var_ps(a[j], low8, a[j + 8]),
                                 _mm512_permutex2var_ps(a[j], high8, a[j + 8]));
        for (int j = 0; j < 4; j++)
            a[j] = _mm512_add_ps(_mm512_permutex2var_ps(a[j], low4, a[j + 4]),
                                 _mm512_permutex2var_ps(a[j], high4, a[j + 4]));
        for (int j = 0; j < 2; j++)
            a[j] = _mm512_add_ps(_mm512_shuffle_ps(a[j], a[j + 2], 0x44), _mm512_shuffle_ps(a[j], a[j + 2], 0xee));
        __m512 all = _mm512_add_ps(_mm512_shuffle_ps(a[0], a[1], 0x88), _mm512_shuffle_ps(a[0], a[1], 0xdd));
        all = _mm512_permute_ps(all, 0xd8);
        __mmask16 here = count - i >= 16 ? 0xffff : (__mmask16)((1u << (count - i)) - 1);
        if (add) all = _mm512_add_ps(all, _mm512_maskz_loadu_ps(here, sums + i));
        _mm512_mask_storeu_ps(sums + i, here, all);
    }
#endif
    for (; i < count; i++) {
        float sum = 0;
        for (int lane = 0; lane < LANES; lane++) sum += vectors[i * LANES + lane];
        sums[i] = add ? sums[i] + sum : sum;
    }
}

/* Backward of `count` (a constant) states over a tile, last position first. states[t][i] is h before position t,
   decays[t][i] is 2^(dt A) there; dB and dC [t][i] collect what is still to be summed over lanes. */
static inline __attribute__((always_inline)) void
FN(recur_back)(const int count, int64_t length, const float *A, float *dh, float *dA, const float *dt,
               const float *dtu, const float *dy, const float **rows, int64_t n, const float *states,
               const float *decays, float *dB, float *dC, float *d_dt, float *d_dtu, int add, int add_lanes) {
    vec G[GROUP], S[GROUP];
#pragma GCC unroll 16
    for (int i = 0; i < count; i++) G[i] = at(dh + i * BLOCK), S[i] = at(dA + i * BLOCK);
    for (int64_t t = length - 1; t >= 0; t--) {
        vec step = at(dt + t * BLOCK), input = at(dtu + t * BLOCK), out = at(dy + t * BLOCK);
        vec to_step = {0}, to_input = {0};
        const float *B = rows[t], *C = rows[t] + n;
#pragma GCC unroll 16
        for (int i = 0; i < count; i++) {
            int64_t cell = (t * n + i) * LANES;
            vec g = G[i] + out * C[i];
            vec b = g * input, c = out * at(states + cell + n * LANES);
            if (add_lanes) b += at(dB + cell), c += at(dC + cell);
            put(dB + cell, b);
            put(dC + cell, c);
            to_input += g * B[i];
            G[i] = g * at(decays + cell);
            vec to_exponent = G[i] * at(states + cell);
            to_step += to_exponent * at(A + i * BLOCK);
            S[i] += to_exponent * step;
        }
        if (add) to_step += at(d_dt + t * BLOCK), to_input += at(d_dtu + t * BLOCK);
        put(d_dt + t * BLOCK, to_step);
        put(d_dtu + t * BLOCK, to_input);
    }
#pragma GCC unroll 16
    for (int i = 0; i < count; i++) put(dh + i * BLOCK, G[i]), put(dA + i * BLOCK, S[i]);
}

/* Fills states[0 … length] and decays[0 … length − 1] of all n states of one vector of channels. */
static void FN(replay)(int64_t length, int64_t n, const float *A, const float *h, const float *dt, const float *dtu,
                       const float **rows, float *states, float *decays) {
    for (int64_t i = 0; i < n; i++) put(states + i * LANES, at(h + i * BLOCK));
    for (int64_t t = 0; t < length; t++) {
        vec step = at(dt + t * BLOCK) * 1.44269504f, input = at(dtu + t * BLOCK);
        const float *B = rows[t];
        for (int64_t i = 0; i < n; i++) {
            float *cell = states + (t * n + i) * LANES;
            vec decay = FN(exp2)(step * at(A + i * BLOCK));
            put(decays + (t * n + i) * LANES, decay);
            put(cell + n * LANES, decay * at(cell) + input * B[i]);
        }
    }
}

static void FN(backward_block)(const Scan *s, int64_t image, int64_t channel, int64_t count, int first, float *dx,
                               float *scratch) {
    int64_t padded = ceil_div(count, LANES) * LANES, n = s->n, r = s->r;
    int64_t row_length = r + 2 * n, tiles = ceil_div(s->l, TILE);
    float *dt = scratch, *dtu = dt + TILE * BLOCK, *u = dtu + TILE * BLOCK, *dy = u + TILE * BLOCK;
    float *slope = dy + TILE * BLOCK, *d_dt = slope + TILE * BLOCK, *d_dtu = d_dt + TILE * BLOCK;
    float *du = d_dtu + TILE * BLOCK, *A = du + TILE * BLOCK, *h = A + n * BLOCK, *dh = h + n * BLOCK;
    float *dA = dh + n * BLOCK, *weight = dA + n * BLOCK, *d_weight = weight + r * BLOCK;
    float *bias = d_weight + r * BLOCK, *d_bias = bias + BLOCK, *skip = d_bias + BLOCK, *dD = skip + BLOCK;
    float *states = dD + BLOCK, *decays = states + (TILE + 1) * n * LANES;
    float *dB = decays + TILE * n * LANES, *dC = dB + TILE * n * LANES, *d_low = dC + TILE * n * LANES;
    memset(skip, 0, BLOCK * sizeof(float));
    memset(dD, 0, BLOCK * sizeof(float));
    for (int64_t k = 0; k < s->k; k++)
        for (int64_t c = 0; c < count; c++) skip[c] += s->D[k * s->d + channel + c];
    const float *rows[TILE];
    for (int64_t k = 0; k < s->k; k++) {
        FN(read_constants)(s, k, channel, count, 1.0f, A, weight, bias);
        memset(dh, 0, n * BLOCK * sizeof(float));
        memset(dA, 0, n * BLOCK * sizeof(float));
        memset(d_weight, 0, r * BLOCK * sizeof(float));
        memset(d_bias, 0, BLOCK * sizeof(float));
        for (int64_t tile = tiles - 1; tile >= 0; tile--) {
            const int32_t *walk = s->order + k * s->l + tile * TILE;
            int64_t length = smaller(TILE, s->l - tile * TILE);
            for (int64_t i = 0; i < n; i++)
                FN(read_row)(h + i * BLOCK, s->border + (((image * s->k + k) * tiles + tile) * n + i) * s->d + channel,
                             count, padded);
            for (int64_t t = 0; t < length; t++) {
                int64_t position = image * s->l + walk[t];
                const float *x = s->x + (position * s->k + k) * row_length;
                rows[t] = x + r;
                if (tile * TILE + t + AHEAD < s->l) {
                    int64_t next = image * s->l + walk[t + AHEAD];
                    FN(prefetch)(s->x + (next * s->k + k) * row_length, row_length);
                    FN(prefetch)(s->u + next * s->d + channel, count);
                    FN(prefetch)(s->dy + next * s->d + channel, count);
                }
                FN(read_row)(u + t * BLOCK, s->u + position * s->d + channel, count, padded);
                FN(read_row)(dy + t * BLOCK, s->dy + position * s->d + channel, count, padded);
                for (int64_t v = 0; v < padded; v += LANES) {
                    vec decay, before = FN(project_dt)(x, weight + v, bias + v, r);
                    vec step = FN(softplus)(before, &decay);
                    put(dt + t * BLOCK + v, step);
                    put(dtu + t * BLOCK + v, step * at(u + t * BLOCK + v));
                    vec sigmoid = FN(pick)(before > splat(0.0f), splat(1.0f), decay) / (decay + 1.0f);
                    put(slope + t * BLOCK + v, sigmoid);
                }
            }
            for (int64_t v = 0; v < padded; v += LANES) {
                FN(replay)(length, n, A + v, h + v, dt + v, dtu + v, rows, states, decays);
                const float *tail[TILE];
                memcpy(tail, rows, sizeof rows);
                for (int64_t i = 0; i < n;) {
                    int64_t offset = i * BLOCK + v, lanes = i * LANES;
                    if (i + GROUP / 2 <= n) {
                        FN(recur_back)(GROUP / 2, length, A + offset, dh + offset, dA + offset, dt + v, dtu + v, dy + v,
                                       tail, n, states + lanes, decays + lanes, dB + lanes, dC + lanes, d_dt + v,
                                       d_dtu + v, i > 0, v > 0);
                        i += GROUP / 2;
                        for (int64_t t = 0; t < length; t++) tail[t] += GROUP / 2;
                    } else {
                        FN(recur_back)(1, length, A + offset, dh + offset, dA + offset, dt + v, dtu + v, dy + v, tail,
                                       n, states + lanes, decays + lanes, dB + lanes, dC + lanes, d_dt + v, d_dtu + v,
                                       i > 0, v > 0);
                        i += 1;
                        for (int64_t t = 0; t < length; t++) tail[t] += 1;
                    }
                }
            }
            for (int64_t t = 0; t < length; t++) {
                int64_t position = image * s->l + walk[t];
                const float *x = s->x + (position * s->k + k) * row_length;
                float *to = dx + (position * s->k + k) * row_length;
                memset(d_low, 0, r * LANES * sizeof(float));
                for (int64_t v = 0; v < padded; v += LANES) {
                    int64_t cell = t * BLOCK + v;
                    vec to_input = at(d_dtu + cell), in = at(u + cell), out = at(dy + cell);
                    vec before = (at(d_dt + cell) + to_input * in) * at(slope + cell);
                    vec grad = to_input * at(dt + cell);
                    if (k == 0) {
                        grad += out * at(skip + v);
                        put(dD + v, at(dD + v) + out * in);
                    }
                    put(du + cell, grad);
                    put(d_bias + v, at(d_bias + v) + before);
                    for (int64_t j = 0; j < r; j++) {
                        put(d_weight + j * BLOCK + v, at(d_weight + j * BLOCK + v) + before * x[j]);
                        put(d_low + j * LANES, at(d_low + j * LANES) + before * at(weight + j * BLOCK + v));
                    }
                }
                FN(write_row)(s->du + position * s->d + channel, du + t * BLOCK, count, k > 0);
                FN(sum_lanes)(d_low, r, to, !first);
                FN(sum_lanes)(dB + t * n * LANES, n, to + r, !first);
                FN(sum_lanes)(dC + t * n * LANES, n, to + r + n, !first);
            }
        }
        for (int64_t c = 0; c < count; c++) {
            int64_t row = (image * s->k + k) * s->d + channel + c;
            for (int64_t i = 0; i < n; i++) s->dA[row * n + i] = dA[i * BLOCK + c];
            for (int64_t j = 0; j < r; j++) s->d_dt_weight[row * r + j] = d_weight[j * BLOCK + c];
            s->d_dt_bias[row] = d_bias[c];
        }
    }
    memcpy(s->dD + image * s->d + channel, dD, count * sizeof(float));
}

static void FN(backward)(const Scan *s, int64_t width, int64_t task, float *scratch) {
    int64_t image = task / s->groups, group = task % s->groups, blocks = ceil_div(s->d, width);
    int64_t begin = blocks * group / s->groups, end = blocks * (group + 1) / s->groups;
    float *dx = s->dx + group * s->b * s->l * s->k * (s->r + 2 * s->n);
    for (int64_t block = begin; block < end; block++)
        FN(backward_block)(s, image, block * width, smaller(width, s->d - block * width), block == begin, dx, scratch);
}

#undef vec
#undef ivec
#undef splat
#undef at
#undef put
