/* The selective scan for one instruction set. GROUP is the number of states whose recurrence is kept in registers at
   once, STEPS that of these whose decays are computed side by side, HALF the number of states that go backward at once,
   VECS that of vectors of channels that do. Rows of scratch are BLOCK floats long; lanes beyond the last channel hold
   zeros and change nothing. */

static inline void FN(add_half)(float *to, const float *from) {
    half x, y;
    memcpy(&x, to, sizeof x);
    memcpy(&y, from, sizeof y);
    x += y;
    memcpy(to, &x, sizeof x);
}

/* log(1 + e^x), relative error 1e-7; `decay` becomes e^-|x|. */
static inline vec FN(softplus)(vec x, vec *decay) {
    const float p[] = {0.005232673f,  -0.029505154f, 0.078225813f, -0.13663233f, 0.19106001f,
                       -0.248429806f, 0.333190966f,  -0.49999493f, 1.0f};
    vec positive = FN(pick)(x > splat(0.0f), x, splat(0.0f));
    vec e = (x - 2.0f * positive) * 1.44269504f;
    FN(exp2)(1, &e);
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
        for (int i = 0; i < count; i += STEPS) {
            const int steps = count < STEPS ? count : STEPS;
            vec decay[STEPS];
#pragma GCC unroll 8
            for (int j = 0; j < steps; j++) decay[j] = step * at(A + (i + j) * BLOCK);
            FN(exp2)(steps, decay);
#pragma GCC unroll 8
            for (int j = 0; j < steps; j++) {
                H[i + j] = decay[j] * H[i + j] + input * B[i + j];
                if (j % 2)
                    odd += H[i + j] * C[i + j];
                else
                    even += H[i + j] * C[i + j];
            }
        }
        even += odd;
        if (add) even += at(y + t * BLOCK);
        put(y + t * BLOCK, even);
    }
#pragma GCC unroll 16
    for (int i = 0; i < count; i++) put(h + i * BLOCK, H[i]);
}

static void FN(forward)(const void *work, int64_t width, int64_t task, float *scratch) {
    const Scan *s = work;
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

/* The sums over the lanes of LANES vectors, one a lane. A transposition that adds: each step halves the number of
   vectors, the upper half of them into the lanes with the next bit set. Destroys the vectors. */
static inline __attribute__((always_inline)) vec FN(sum_lanes)(vec *vectors) {
#if defined(AVX512)
    const __m512i quarters = _mm512_set_epi32(27, 26, 25, 24, 15, 14, 13, 12, 19, 18, 17, 16, 7, 6, 5, 4);
    const __m512i ones = _mm512_set_epi32(30, 15, 28, 13, 26, 11, 24, 9, 22, 7, 20, 5, 18, 3, 16, 1);
    __m512 *a = (__m512 *)vectors;
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++)
        a[j] = _mm512_mask_blend_ps(0xff00, a[j], a[j + 8]) + _mm512_shuffle_f32x4(a[j], a[j + 8], 0x4e);
#pragma GCC unroll 8
    for (int j = 0; j < 4; j++)
        a[j] = _mm512_mask_blend_ps(0xf0f0, a[j], a[j + 4]) + _mm512_permutex2var_ps(a[j], quarters, a[j + 4]);
#pragma GCC unroll 8
    for (int j = 0; j < 2; j++)
        a[j] = _mm512_mask_blend_ps(0xcccc, a[j], a[j + 2]) + _mm512_shuffle_ps(a[j], a[j + 2], 0x4e);
    return (vec)(_mm512_mask_blend_ps(0xaaaa, a[0], a[1]) + _mm512_permutex2var_ps(a[0], ones, a[1]));
#elif defined(AVX2)
    __m256 *a = (__m256 *)vectors;
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++)
        a[j] = _mm256_blend_ps(a[j], a[j + 4], 0xf0) + _mm256_permute2f128_ps(a[j], a[j + 4], 0x21);
#pragma GCC unroll 4
    for (int j = 0; j < 2; j++)
        a[j] = _mm256_blend_ps(a[j], a[j + 2], 0xcc) + _mm256_shuffle_ps(a[j], a[j + 2], 0x4e);
    a[0] = _mm256_shuffle_ps(a[0], a[1], 0x88) + _mm256_shuffle_ps(a[0], a[1], 0xdd);
    return (vec)_mm256_permute_ps(a[0], 0xd8);
#else
    vec sums;
    for (int j = 0; j < LANES; j++) {
        sums[j] = 0;
        for (int lane = 0; lane < LANES; lane++) sums[j] += vectors[j][lane];
    }
    return sums;
#endif
}

/* `count` (a constant) states of `vecs` (a constant) vectors of channels over a tile, forward and back again, last
   position first: what they add to d_dt, d_dtu and, summed over channels, to d_rows (length, 2n), dB and dC.
   `states` and `decays` (length, count, vecs) are room for h before each position and 2^(dt A) there. */
static inline __attribute__((always_inline)) void
FN(recur_back)(const int count, const int vecs, int64_t length, const float *A, const float *h, float *dh, float *dA,
               const float *dt, const float *dtu, const float *dy, const float **rows, int64_t n, float *states,
               float *decays, float *d_rows, float *d_dt, float *d_dtu, int add) {
    const int64_t stride = count * vecs * LANES;
    vec G[HALF * VECS];
#pragma GCC unroll 16
    for (int i = 0; i < count * vecs; i++) G[i] = at(h + i / vecs * BLOCK + i % vecs * LANES);
    for (int64_t t = 0; t < length; t++) {
        vec step[VECS], input[VECS];
#pragma GCC unroll 16
        for (int v = 0; v < vecs; v++) {
            step[v] = at(dt + t * BLOCK + v * LANES) * 1.44269504f;
            input[v] = at(dtu + t * BLOCK + v * LANES);
        }
        const float *B = rows[t];
#pragma GCC unroll 16
        for (int i = 0; i < count; i++) {
            vec decay[STEPS < VECS ? VECS : STEPS];
#pragma GCC unroll 16
            for (int v = 0; v < vecs; v++) decay[v] = step[v] * at(A + i * BLOCK + v * LANES);
            FN(exp2)(vecs, decay);
#pragma GCC unroll 16
            for (int v = 0; v < vecs; v++) {
                int64_t cell = t * stride + (i * vecs + v) * LANES;
                put(states + cell, G[i * vecs + v]);
                put(decays + cell, decay[v]);
                G[i * vecs + v] = decay[v] * G[i * vecs + v] + input[v] * B[i];
            }
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < count * vecs; i++) {
        put(states + length * stride + i * LANES, G[i]);
        G[i] = at(dh + i / vecs * BLOCK + i % vecs * LANES);
    }
    for (int64_t t = length - 1; t >= 0; t--) {
        vec step[VECS], input[VECS], out[VECS], to_step[VECS], to_input[VECS], sums[LANES];
        const float *B = rows[t], *C = rows[t] + n;
#pragma GCC unroll 16
        for (int v = 0; v < vecs; v++) {
            int64_t cell = t * BLOCK + v * LANES;
            step[v] = at(dt + cell), input[v] = at(dtu + cell), out[v] = at(dy + cell);
            to_step[v] = to_input[v] = splat(0.0f);
            if (add) to_step[v] = at(d_dt + cell), to_input[v] = at(d_dtu + cell);
        }
#pragma GCC unroll 16
        for (int i = 0; i < count; i++) {
            vec dB = {0}, dC = {0};
#pragma GCC unroll 16
            for (int v = 0; v < vecs; v++) {
                int64_t cell = t * stride + (i * vecs + v) * LANES, constant = i * BLOCK + v * LANES;
                vec g = G[i * vecs + v] + out[v] * C[i];
                dB += g * input[v];
                dC += out[v] * at(states + cell + stride);
                to_input[v] += g * B[i];
                g *= at(decays + cell);
                G[i * vecs + v] = g;
                vec to_exponent = g * at(states + cell);
                to_step[v] += to_exponent * at(A + constant);
                put(dA + constant, at(dA + constant) + to_exponent * step[v]);
            }
            sums[i] = dB, sums[HALF + i] = dC;
        }
        float *dB = d_rows + t * 2 * n, *dC = dB + n;
        if (count == HALF) {
            float all[LANES] __attribute__((aligned(64)));
            put(all, FN(sum_lanes)(sums));
            FN(add_half)(dB, all);
            FN(add_half)(dC, all + HALF);
        } else {
            for (int i = 0; i < count; i++)
                for (int lane = 0; lane < LANES; lane++) dB[i] += sums[i][lane], dC[i] += sums[HALF + i][lane];
        }
#pragma GCC unroll 16
        for (int v = 0; v < vecs; v++)
            put(d_dt + t * BLOCK + v * LANES, to_step[v]), put(d_dtu + t * BLOCK + v * LANES, to_input[v]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < count * vecs; i++) put(dh + i / vecs * BLOCK + i % vecs * LANES, G[i]);
}

/* The same of all n states. */
static inline __attribute__((always_inline)) void
FN(tile_back)(const int vecs, int64_t length, int64_t n, const float *A, const float *h, float *dh, float *dA,
              const float *dt, const float *dtu, const float *dy, const float **rows, float *states, float *decays,
              float *d_rows, float *d_dt, float *d_dtu) {
    const float *tail[TILE];
    memcpy(tail, rows, length * sizeof *tail);
    for (int64_t i = 0; i < n;) {
        int64_t row = i * BLOCK;
        int some = i + HALF <= n ? HALF : 1;
        if (some == HALF)
            FN(recur_back)(HALF, vecs, length, A + row, h + row, dh + row, dA + row, dt, dtu, dy, tail, n, states,
                           decays, d_rows + i, d_dt, d_dtu, i > 0);
        else
            FN(recur_back)(1, vecs, length, A + row, h + row, dh + row, dA + row, dt, dtu, dy, tail, n, states,
                           decays, d_rows + i, d_dt, d_dtu, i > 0);
        for (int64_t t = 0; t < length; t++) tail[t] += some;
        i += some;
    }
}

/* Backward of project_dt over a tile, from `before` (length, BLOCK): adds to d_weight, and fills d_low (length, r). */
static void FN(project_back)(int64_t length, int64_t padded, int64_t r, const float **rows,
                             const float *weight, float *d_weight, const float *before, float *d_low) {
    for (int64_t j = 0; j < r; j++)
        for (int64_t v = 0; v < padded; v += LANES) {
            vec even = at(d_weight + j * BLOCK + v), odd = {0};
            int64_t t = 0;
            for (; t + 2 <= length; t += 2) {
                even += at(before + t * BLOCK + v) * rows[t][j - r];
                odd += at(before + (t + 1) * BLOCK + v) * rows[t + 1][j - r];
            }
            if (t < length) even += at(before + t * BLOCK + v) * rows[t][j - r];
            put(d_weight + j * BLOCK + v, even + odd);
        }
    vec sums[LANES];
    for (int64_t cell = 0; cell < length * r; cell++) {
        int64_t t = cell / r, j = cell % r;
        vec sum = {0};
        for (int64_t v = 0; v < padded; v += LANES) sum += at(before + t * BLOCK + v) * at(weight + j * BLOCK + v);
        sums[cell % LANES] = sum;
        if (cell % LANES == LANES - 1 || cell == length * r - 1) {
            vec all = FN(sum_lanes)(sums);
            put(d_low + cell / LANES * LANES, all);
        }
    }
}

static void FN(backward_block)(const Scan *s, int64_t image, int64_t channel, int64_t count, int first, float *dx,
                               float *scratch) {
    int64_t padded = ceil_div(count, LANES) * LANES, n = s->n, r = s->r;
    int64_t row_length = r + 2 * n, tiles = ceil_div(s->l, TILE);
    float *dt = scratch, *dtu = dt + TILE * BLOCK, *u = dtu + TILE * BLOCK, *dy = u + TILE * BLOCK;
    float *slope = dy + TILE * BLOCK, *d_dt = slope + TILE * BLOCK, *d_dtu = d_dt + TILE * BLOCK;
    float *A = d_dtu + TILE * BLOCK, *h = A + n * BLOCK, *dh = h + n * BLOCK;
    float *dA = dh + n * BLOCK, *weight = dA + n * BLOCK, *d_weight = weight + r * BLOCK;
    float *bias = d_weight + r * BLOCK, *d_bias = bias + BLOCK, *skip = d_bias + BLOCK, *dD = skip + BLOCK;
    float *states = dD + BLOCK, *decays = states + (TILE + 1) * HALF * VECS * LANES;
    float *d_rows = decays + TILE * HALF * VECS * LANES, *d_low = d_rows + TILE * 2 * n;
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
            const float *border = s->border + ((image * s->k + k) * tiles + tile) * n * s->d + channel;
            for (int64_t i = 0; i < n; i++) {
                FN(read_row)(h + i * BLOCK, border + i * s->d, count, padded);
                if (tile > 0) FN(prefetch)(border + (i - n) * s->d, count);
            }
            for (int64_t t = 0; t < length; t++) {
                int64_t position = image * s->l + walk[t];
                const float *x = s->x + (position * s->k + k) * row_length;
                rows[t] = x + r;
                FN(prefetch)(s->du + position * s->d + channel, count);
                FN(prefetch)(dx + (position * s->k + k) * row_length, row_length);
                if (tile > 0) { /* the row for the next tile */
                    int64_t next = image * s->l + walk[t - TILE];
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
                    vec sigmoid = FN(pick)(before > splat(0.0f), splat(1.0f), decay) * FN(inverse)(decay + 1.0f);
                    put(slope + t * BLOCK + v, sigmoid);
                }
            }
            memset(d_rows, 0, length * 2 * n * sizeof(float));
            int64_t v = 0;
            for (; v + VECS * LANES <= padded; v += VECS * LANES)
                FN(tile_back)(VECS, length, n, A + v, h + v, dh + v, dA + v, dt + v, dtu + v, dy + v, rows, states,
                              decays, d_rows, d_dt + v, d_dtu + v);
            for (; v < padded; v += LANES)
                FN(tile_back)(1, length, n, A + v, h + v, dh + v, dA + v, dt + v, dtu + v, dy + v, rows, states,
                              decays, d_rows, d_dt + v, d_dtu + v);
            for (int64_t t = 0; t < length; t++) { /* d_dt becomes the gradient before softplus, d_dtu that of u */
                for (int64_t v = 0; v < padded; v += LANES) {
                    int64_t cell = t * BLOCK + v;
                    vec to_input = at(d_dtu + cell), in = at(u + cell), out = at(dy + cell);
                    vec before = (at(d_dt + cell) + to_input * in) * at(slope + cell);
                    vec grad = to_input * at(dt + cell);
                    if (k == 0) {
                        grad += out * at(skip + v);
                        put(dD + v, at(dD + v) + out * in);
                    }
                    put(d_dt + cell, before);
                    put(d_dtu + cell, grad);
                    put(d_bias + v, at(d_bias + v) + before);
                }
                FN(write_row)(s->du + (image * s->l + walk[t]) * s->d + channel, d_dtu + t * BLOCK, count, k > 0);
            }
            FN(project_back)(length, padded, r, rows, weight, d_weight, d_dt, d_low);
            for (int64_t t = 0; t < length; t++) {
                float *to = dx + ((image * s->l + walk[t]) * s->k + k) * row_length;
                for (int64_t j = 0; j < r; j++) to[j] = first ? d_low[t * r + j] : to[j] + d_low[t * r + j];
                for (int64_t i = 0; i < 2 * n; i++)
                    to[r + i] = first ? d_rows[t * 2 * n + i] : to[r + i] + d_rows[t * 2 * n + i];
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

static void FN(backward)(const void *work, int64_t width, int64_t task, float *scratch) {
    const Scan *s = work;
    int64_t image = task / s->groups, group = task % s->groups, blocks = ceil_div(s->d, width);
    int64_t begin = blocks * group / s->groups, end = blocks * (group + 1) / s->groups;
    float *dx = s->dx + group * s->b * s->l * s->k * (s->r + 2 * s->n);
    for (int64_t block = begin; block < end; block++)
        FN(backward_block)(s, image, block * width, smaller(width, s->d - block * width), block == begin, dx, scratch);
}
