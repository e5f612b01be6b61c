/* Depthwise convolution of (b, h, w, c) for one instruction set, stride 1, zeros around the image: forward, and the
   gradient of the weight. ACROSS positions of a row are computed side by side, so that a row is read once for all taps
   that lie on it. Sides of the filter are 3, 5 or 7. */

/* Writes row `y` of an image, `count` channels of it, into (w + size − 1 and more, LANES) floats, zeros around it. */
static inline void FN(pad_row)(const Depthwise *s, const float *image, int64_t y, int64_t count, int64_t before,
                               int64_t length, float *to) {
    if (y < 0 || y >= s->h) {
        memset(to, 0, length * LANES * sizeof(float));
        return;
    }
    memset(to, 0, before * LANES * sizeof(float));
    const float *from = image + y * s->w * s->c;
    to += before * LANES;
    for (int64_t i = 0; i < s->w; i++) put(to + i * LANES, FN(load)(from + i * s->c, count));
    memset(to + s->w * LANES, 0, (length - before - s->w) * LANES * sizeof(float));
}

/* ACROSS results, from the padded rows of the window and the taps (size, size, LANES). */
static inline __attribute__((always_inline)) void FN(convolve)(const int size, const float **rows, const float *taps,
                                                               vec bias, vec *found) {
#pragma GCC unroll 8
    for (int i = 0; i < ACROSS; i++) found[i] = bias;
    for (int y = 0; y < size; y++) {
        vec tap[7];
#pragma GCC unroll 8
        for (int j = 0; j < size; j++) tap[j] = at(taps + (y * size + j) * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < ACROSS + size - 1; i++) {
            vec x = at(rows[y] + i * LANES);
#pragma GCC unroll 8
            for (int j = 0; j < size; j++)
                if (i - j >= 0 && i - j < ACROSS) found[i - j] += tap[j] * x;
        }
    }
}

static inline __attribute__((always_inline)) void
FN(depthwise_columns)(const int size, const Depthwise *s, int64_t image, int64_t from, int64_t end, int64_t channel,
                      int64_t count, float *scratch) {
    const int64_t before = size / 2, length = ceil_div(s->w, ACROSS) * ACROSS + size - 1;
    const float *x = s->x + image * s->h * s->w * s->c + channel;
    float *y = s->y + image * s->h * s->w * s->c + channel;
    float *taps = scratch, *ring = taps + size * size * LANES;
    for (int64_t i = 0; i < size * size; i++) {
        int64_t tap = s->flipped ? size * size - 1 - i : i;
        put(taps + i * LANES, FN(load)(s->weight + tap * s->c + channel, count));
    }
    vec bias = s->bias ? FN(load)(s->bias + channel, count) : splat(0.0f);
    for (int64_t row = from - before; row < from + before; row++)
        FN(pad_row)(s, x, row, count, before, length, ring + (row + size) % size * length * LANES);
    for (int64_t row = from; row < end; row++) {
        FN(pad_row)(s, x, row + before, count, before, length, ring + (row + before) % size * length * LANES);
        for (int64_t column = 0; column < s->w; column += ACROSS) {
            const float *rows[7];
            for (int64_t j = 0; j < size; j++)
                rows[j] = ring + ((row - before + j + size) % size * length + column) * LANES;
            vec found[ACROSS];
            FN(convolve)(size, rows, taps, bias, found);
            for (int64_t i = 0; i < smaller(ACROSS, s->w - column); i++)
                FN(store)(y + (row * s->w + column + i) * s->c, found[i], count);
        }
    }
}

/* A task is one band of rows of one image, and `width` channels. */
static void FN(depthwise)(const void *work, int64_t width, int64_t task, float *scratch) {
    const Depthwise *s = work;
    int64_t blocks = ceil_div(s->c, width), bands = ceil_div(s->h, BAND);
    int64_t channel = task % blocks * width, end = smaller(channel + width, s->c);
    int64_t band = task / blocks % bands, image = task / blocks / bands;
    int64_t from = band * BAND, below = smaller(from + BAND, s->h);
    for (; channel < end; channel += LANES) {
        int64_t count = smaller(end - channel, LANES);
        switch (s->size) {
        case 3: FN(depthwise_columns)(3, s, image, from, below, channel, count, scratch); break;
        case 5: FN(depthwise_columns)(5, s, image, from, below, channel, count, scratch); break;
        default: FN(depthwise_columns)(7, s, image, from, below, channel, count, scratch);
        }
    }
}

/* The gradients of the taps of row `y` of the filter, from a padded row of x and one of dy. */
static inline __attribute__((always_inline)) void FN(correlate)(const int size, int64_t w, const float *x,
                                                                const float *dy, float *d_taps) {
    vec sums[7];
#pragma GCC unroll 8
    for (int j = 0; j < size; j++) sums[j] = splat(0.0f);
    for (int64_t column = 0; column < w; column += ACROSS) {
        vec out[ACROSS];
#pragma GCC unroll 8
        for (int i = 0; i < ACROSS; i++) out[i] = at(dy + (column + i) * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < ACROSS + size - 1; i++) {
            vec in = at(x + (column + i) * LANES);
#pragma GCC unroll 8
            for (int j = 0; j < size; j++)
                if (i - j >= 0 && i - j < ACROSS) sums[j] += out[i - j] * in;
        }
    }
#pragma GCC unroll 8
    for (int j = 0; j < size; j++) put(d_taps + j * LANES, at(d_taps + j * LANES) + sums[j]);
}

static inline __attribute__((always_inline)) void FN(weight_columns)(const int size, const Depthwise *s, int64_t image,
                                                                     int64_t channel, int64_t count, float *scratch) {
    const int64_t before = size / 2, length = ceil_div(s->w, ACROSS) * ACROSS + size - 1;
    int64_t start = image * s->h * s->w * s->c + channel;
    float *d_taps = scratch, *dy = d_taps + size * size * LANES, *ring = dy + length * LANES;
    memset(d_taps, 0, size * size * LANES * sizeof(float));
    vec d_bias = splat(0.0f);
    for (int64_t row = -before; row < before; row++)
        FN(pad_row)(s, s->x + start, row, count, before, length, ring + (row + size) % size * length * LANES);
    for (int64_t row = 0; row < s->h; row++) {
        FN(pad_row)(s, s->x + start, row + before, count, before, length,
                    ring + (row + before) % size * length * LANES);
        FN(pad_row)(s, s->dy + start, row, count, 0, length, dy);
        vec sum = splat(0.0f);
        for (int64_t i = 0; i < s->w; i++) sum += at(dy + i * LANES);
        d_bias += sum;
        for (int64_t j = 0; j < size; j++)
            FN(correlate)(size, s->w, ring + (row - before + j + size) % size * length * LANES, dy,
                          d_taps + j * size * LANES);
    }
    float *d_weight = s->d_weight + image * (size * size + 1) * s->c + channel;
    for (int64_t i = 0; i < size * size; i++) FN(store)(d_weight + i * s->c, at(d_taps + i * LANES), count);
    FN(store)(d_weight + size * size * s->c, d_bias, count);
}

/* A task is one image and `width` channels. */
static void FN(depthwise_weight)(const void *work, int64_t width, int64_t task, float *scratch) {
    const Depthwise *s = work;
    int64_t blocks = ceil_div(s->c, width), image = task / blocks, channel = task % blocks * width;
    int64_t end = smaller(channel + width, s->c);
    for (; channel < end; channel += LANES) {
        int64_t count = smaller(end - channel, LANES);
        switch (s->size) {
        case 3: FN(weight_columns)(3, s, image, channel, count, scratch); break;
        case 5: FN(weight_columns)(5, s, image, channel, count, scratch); break;
        default: FN(weight_columns)(7, s, image, channel, count, scratch);
        }
    }
}
